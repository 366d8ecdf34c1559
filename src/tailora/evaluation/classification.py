"""Scoring of classifiers, one class per example or one tag per token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tailora.errors import DataError
from tailora.evaluation import metrics
from tailora.evaluation.base import IGNORED, Evaluation, evaluating, in_order, inputs_of, mean, row_number
from tailora.evaluation.entities import OUTSIDE, entity_f1, marks_entities

if TYPE_CHECKING:
    import torch


def classify(
    model: Any,
    batches: Iterable[dict[str, torch.Tensor]],
    *,
    order: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    primary: str = "accuracy",
) -> Evaluation:
    """Score a classifier.

    Args:
        model: Called with each batch without its labels; its ``logits`` are ``[batch, classes]``.
        batches: Dicts of tensors with ``labels`` ``[batch]``.
        order: The data's row number of each example in the order of the batches; 0, 1, ... when left out.
        names: Class names for the records; class numbers when left out.
        primary: The score that decides.

    Returns:
        Accuracy, F1, Matthews correlation, mean cross entropy, and records
        ``{index, label, prediction, correct, loss}``.

    Raises:
        DataError: There is no example.
    """
    import torch

    records: list[dict[str, Any]] = []
    pairs: list[tuple[int, int]] = []
    classes = 0
    with evaluating(model) as device:
        for batch in batches:
            logits = model(**inputs_of(batch, device)).logits.float()
            labels, classes = batch["labels"].to(device), logits.shape[-1]
            losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").double().tolist()
            for label, prediction, loss in zip(labels.tolist(), logits.argmax(-1).tolist(), losses, strict=True):
                records.append(
                    {
                        "index": row_number(order, len(records)),
                        "label": names[label] if names else label,
                        "prediction": names[prediction] if names else prediction,
                        "correct": label == prediction,
                        "loss": loss,
                    }
                )
                pairs.append((label, prediction))
    records = in_order(records)
    counts = metrics.confusion(pairs, classes)
    return Evaluation(
        loss=mean(records, "loss"),
        accuracy=sum(record["correct"] for record in records) / len(records),
        examples=len(records),
        records=tuple(records),
        metrics={"f1": metrics.f1(counts), "matthews": metrics.matthews(counts)},
        primary=primary,
    )


def tag(
    model: Any,
    batches: Iterable[dict[str, torch.Tensor]],
    *,
    order: Sequence[int] | None = None,
    names: Sequence[str],
    primary: str = "f1",
) -> Evaluation:
    """Score a tagger: one class per labelled token.

    Args:
        model: Called with each batch without its labels; its ``logits`` are ``[batch, length, classes]``.
        batches: Dicts of tensors with ``labels`` ``[batch, length]``; -100 does not count.
        order: The data's row number of each example in the order of the batches.
        names: Tag names; ``O`` is left out of the F1.
        primary: The score that decides.

    Returns:
        Accuracy and micro-averaged F1 over tokens, ``entity_f1`` where the names are those of the BIO scheme, the loss
        per token, and records ``{index, label, prediction, score, tokens, loss}``: tags, share of right ones, and mean
        loss of one example.

    Raises:
        DataError: There is no example, or one without a labelled token.
    """
    import torch

    records: list[dict[str, Any]] = []
    pairs: list[tuple[int, int]] = []
    with evaluating(model) as device:
        for batch in batches:
            logits = model(**inputs_of(batch, device)).logits
            labels = batch["labels"].to(device)
            for row, own in zip(logits, labels, strict=True):
                counted = own != IGNORED
                index = row_number(order, len(records))
                if not bool(counted.any()):
                    raise DataError(f"evaluation example {index} has no labelled token; remove it")
                chosen, wanted = row[counted].float(), own[counted]
                losses = torch.nn.functional.cross_entropy(chosen, wanted, reduction="none").double()
                found = list(zip(wanted.tolist(), chosen.argmax(-1).tolist(), strict=True))
                pairs += found
                records.append(
                    {
                        "index": index,
                        "label": [names[label] for label, _ in found],
                        "prediction": [names[guess] for _, guess in found],
                        "score": sum(label == guess for label, guess in found) / len(found),
                        "tokens": len(found),
                        "loss": float(losses.mean()),
                    }
                )
    records = in_order(records)
    counts = metrics.confusion(pairs, len(names))
    outside = names.index(OUTSIDE) if OUTSIDE in names else None
    scores = {"f1": metrics.micro_f1(counts, outside)}
    if marks_entities(names):
        scores["entity_f1"] = entity_f1((record["label"], record["prediction"]) for record in records)
    return Evaluation(
        loss=math.fsum(record["loss"] * record["tokens"] for record in records) / len(pairs),
        accuracy=sum(label == guess for label, guess in pairs) / len(pairs),
        examples=len(records),
        records=tuple(records),
        metrics=scores,
        primary=primary,
    )
