"""Scores with one record per example, so that runs can be compared example by example.

Losses are float32 cross entropies summed in float64; no score depends on the batch size beyond rounding.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailora.errors import DataError

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""The label that does not count, as in transformers."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on a data set.

    Attributes:
        loss: Mean loss per example (classification) or per token (language modelling), in nats.
        examples: How many examples were scored.
        records: One dict per example, in the data's order.
        accuracy: Share of correct classes; ``None`` for language modelling.
        tokens: How many tokens were predicted; ``None`` for classification.
    """

    loss: float
    examples: int
    records: tuple[dict[str, Any], ...]
    accuracy: float | None = None
    tokens: int | None = None

    @property
    def perplexity(self) -> float | None:
        """``exp(loss)`` for language modelling; ``None`` otherwise, or where it overflows."""
        if self.tokens is None or self.loss > 700:
            return None
        return math.exp(self.loss)

    def scores(self) -> dict[str, Any]:
        """Return what goes to ``scores.json``."""
        scores: dict[str, Any] = {
            "primary": "loss" if self.accuracy is None else "accuracy",
            "higher_is_better": self.accuracy is not None,
            "loss": self.loss,
            "examples": self.examples,
        }
        optional = {"accuracy": self.accuracy, "perplexity": self.perplexity, "tokens": self.tokens}
        return scores | {name: value for name, value in optional.items() if value is not None}


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[torch.device]:
    """Switch off drop-out and gradients; yield the model's device; put every module's mode back afterwards."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        for module, mode in modes:
            # Not module.train(): it would set the children as well.
            module.training = mode


def classify(
    model: Any,
    batches: Iterable[dict[str, torch.Tensor]],
    *,
    order: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Evaluation:
    """Score a classifier.

    Args:
        model: Called with each batch without its labels; its ``logits`` are ``[batch, classes]``.
        batches: Dicts of tensors with ``labels`` ``[batch]``.
        order: The data's row number of each example in the order of the batches; 0, 1, ... when left out.
        names: Class names for the records; class numbers when left out.

    Returns:
        Accuracy, mean cross entropy, and records ``{index, label, prediction, correct, loss}``.

    Raises:
        DataError: There is no example.
    """
    import torch

    records: list[dict[str, Any]] = []
    with evaluating(model) as device:
        for batch in batches:
            inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
            logits = model(**inputs).logits.float()
            labels = batch["labels"].to(device)
            losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").double().tolist()
            for label, prediction, loss in zip(labels.tolist(), logits.argmax(-1).tolist(), losses, strict=True):
                records.append(
                    {
                        "index": order[len(records)] if order is not None else len(records),
                        "label": names[label] if names else label,
                        "prediction": names[prediction] if names else prediction,
                        "correct": label == prediction,
                        "loss": loss,
                    }
                )
    records = _in_order(records)
    return Evaluation(
        loss=math.fsum(record["loss"] for record in records) / len(records),
        accuracy=sum(record["correct"] for record in records) / len(records),
        examples=len(records),
        records=tuple(records),
    )


def predict_tokens(
    model: Any, batches: Iterable[dict[str, torch.Tensor]], *, order: Sequence[int] | None = None
) -> Evaluation:
    """Score a causal language model: position ``t`` predicts token ``t + 1``.

    Args:
        model: Called with each batch without its labels; its ``logits`` are ``[batch, length, vocabulary]``.
        batches: Dicts of tensors with ``labels`` ``[batch, length]``; -100 does not count.
        order: The data's row number of each example in the order of the batches.

    Returns:
        The loss per token, and records ``{index, tokens, loss}`` with the mean loss of each example.

    Raises:
        DataError: There is no example, or one without a token to predict.
    """
    import torch

    records: list[dict[str, Any]] = []
    with evaluating(model) as device:
        for batch in batches:
            inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
            logits = model(**inputs).logits[:, :-1]
            labels = batch["labels"].to(device)[:, 1:]
            counted = labels != IGNORED
            # Only the counted positions become float32: the full array may not fit for a large vocabulary.
            losses = torch.nn.functional.cross_entropy(logits[counted].float(), labels[counted], reduction="none")
            tokens = counted.sum(1).tolist()
            for losses_of_one in losses.double().split(tokens):
                index = order[len(records)] if order is not None else len(records)
                if not len(losses_of_one):
                    raise DataError(f"evaluation example {index} has no token to predict; remove it")
                loss = float(losses_of_one.mean())
                records.append({"index": index, "tokens": len(losses_of_one), "loss": loss})
    records = _in_order(records)
    total = sum(record["tokens"] for record in records)
    return Evaluation(
        loss=math.fsum(record["loss"] * record["tokens"] for record in records) / total,
        examples=len(records),
        records=tuple(records),
        tokens=total,
    )


def _in_order(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not records:
        raise DataError("there is no evaluation example; give evaluation data or a larger task.validation")
    return sorted(records, key=lambda record: record["index"])
