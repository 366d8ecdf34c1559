"""Scoring of language models: tokens, answers to choose from, and generated text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailora.errors import DataError
from tailora.evaluation.base import IGNORED, Evaluation, evaluating, in_order, inputs_of, mean, row_number

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Question:
    """What is known of one multiple-choice example besides its tokens.

    Attributes:
        choices: Names of the choices.
        answer: Number of the right one.
    """

    choices: tuple[str, ...]
    answer: int


def predict_tokens(
    model: Any,
    batches: Iterable[dict[str, torch.Tensor]],
    *,
    order: Sequence[int] | None = None,
    shift: bool = True,
) -> Evaluation:
    """Score a language model on the tokens it predicts.

    Args:
        model: A causal model is called with each batch without its labels; a sequence-to-sequence model with them,
            since its decoder reads them.  Its ``logits`` are ``[batch, length, vocabulary]``.
        batches: Dicts of tensors with ``labels`` ``[batch, length]``; -100 does not count.
        order: The data's row number of each example in the order of the batches.
        shift: Position ``t`` predicts label ``t + 1`` (causal) rather than label ``t`` (sequence-to-sequence).

    Returns:
        The loss per token, and records ``{index, tokens, loss}`` with the mean loss of each example.

    Raises:
        DataError: There is no example, or one without a token to predict.
    """
    records: list[dict[str, Any]] = []
    for losses in token_losses(model, batches, shift=shift):
        index = row_number(order, len(records))
        if not len(losses):
            raise DataError(f"evaluation example {index} has no token to predict; remove it")
        records.append({"index": index, "tokens": len(losses), "loss": float(losses.mean())})
    records = in_order(records)
    total = sum(record["tokens"] for record in records)
    return Evaluation(
        loss=math.fsum(record["loss"] * record["tokens"] for record in records) / total,
        examples=len(records),
        records=tuple(records),
        tokens=total,
    )


def token_losses(model: Any, batches: Iterable[dict[str, torch.Tensor]], *, shift: bool = True) -> list[torch.Tensor]:
    """Return the losses of each example's counted tokens.

    Args:
        model: As for ``predict_tokens``.
        batches: As for ``predict_tokens``.
        shift: As for ``predict_tokens``.

    Returns:
        Nats in float64, one per token; one tensor per example, on the CPU.
    """
    import torch

    found: list[torch.Tensor] = []
    with evaluating(model) as device:
        for batch in batches:
            labels = batch["labels"].to(device)
            if shift:
                logits, labels = model(**inputs_of(batch, device)).logits[:, :-1], labels[:, 1:]
            else:
                logits = model(**inputs_of(batch, device), labels=labels).logits
            counted = labels != IGNORED
            # Only the counted positions become float32: the full array may not fit for a large vocabulary.
            losses = torch.nn.functional.cross_entropy(logits[counted].float(), labels[counted], reduction="none")
            found += losses.double().cpu().split(counted.sum(1).tolist())
    return found


def choose(
    model: Any,
    batches: Iterable[dict[str, torch.Tensor]],
    *,
    candidates: Sequence[tuple[int, int]],
    questions: Sequence[Question],
    primary: str = "accuracy",
) -> Evaluation:
    """Score a causal language model on questions with given answers: the likeliest answer is its choice.

    Args:
        model: Called with each batch without its labels.
        batches: One row per candidate answer; labels -100 on everything but the answer.
        candidates: Question and choice number of each row, in the order of the batches.
        questions: The questions in the data's order.
        primary: The score that decides.

    Returns:
        Accuracy by the answer's log-likelihood, ``accuracy_norm`` by its mean per token, the mean loss per token of
        the right answers averaged over questions, and records ``{index, label, prediction, correct, loss, scores}``.

    Raises:
        DataError: There is no question, or an answer without a token.
    """
    totals = [[0.0] * len(question.choices) for question in questions]
    means = [[0.0] * len(question.choices) for question in questions]
    for (row, choice), losses in zip(candidates, token_losses(model, batches), strict=True):
        if not len(losses):
            raise DataError(f"evaluation example {row} has an answer {choice + 1} without a token; remove the example")
        totals[row][choice], means[row][choice] = -float(losses.sum()), -float(losses.mean())
    records, normed = [], 0
    for row, (question, total, average) in enumerate(zip(questions, totals, means, strict=True)):
        prediction = total.index(max(total))
        normed += average.index(max(average)) == question.answer
        records.append(
            {
                "index": row,
                "label": question.choices[question.answer],
                "prediction": question.choices[prediction],
                "correct": prediction == question.answer,
                "loss": -average[question.answer],
                "scores": total,
            }
        )
    records = in_order(records)
    return Evaluation(
        loss=mean(records, "loss"),
        accuracy=sum(record["correct"] for record in records) / len(records),
        examples=len(records),
        records=tuple(records),
        metrics={"accuracy_norm": normed / len(records)},
        primary=primary,
    )
