"""What an evaluation is, and the frame every scoring function works in."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tailora.errors import DataError

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""The label that does not count, as in transformers."""

SHOWN = 200
"""Characters of an example's text that its record keeps."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on a data set.

    Attributes:
        loss: Mean loss per example (classification, regression, choices) or per token (language modelling), in nats
            or squared units.
        examples: How many examples were scored.
        records: One dict per example, in the data's order.
        accuracy: Share of correct classes; ``None`` for language modelling and regression.
        tokens: How many tokens were predicted; ``None`` where the loss is not per token.
        metrics: Further scores by name; higher is better for all of them.
        primary: Name of the score that decides; accuracy where there is one and the loss otherwise when left out.
    """

    loss: float
    examples: int
    records: tuple[dict[str, Any], ...]
    accuracy: float | None = None
    tokens: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    primary: str = ""

    @property
    def perplexity(self) -> float | None:
        """``exp(loss)`` where the loss is per token; ``None`` otherwise, or where it overflows."""
        if self.tokens is None or self.loss > 700:
            return None
        return math.exp(self.loss)

    def scores(self) -> dict[str, Any]:
        """Return what goes to ``scores.json``."""
        primary = self.primary or ("loss" if self.accuracy is None else "accuracy")
        scores: dict[str, Any] = {
            "primary": primary,
            "higher_is_better": primary != "loss",
            "loss": self.loss,
            "examples": self.examples,
        }
        optional = {"accuracy": self.accuracy, **self.metrics, "perplexity": self.perplexity, "tokens": self.tokens}
        return scores | {name: value for name, value in optional.items() if value is not None}


def cut_text(text: str, length: int = SHOWN) -> str:
    """Return a text on one line, cut to ``length`` characters.

    Args:
        text: Any text.
        length: Most characters; the last of them is an ellipsis where something was cut.

    Returns:
        The text with single spaces between its words.
    """
    # No word beyond the cut is looked at: a document may be long.
    line = " ".join(text[: 8 * length].split())
    whole = len(line) <= length and len(text) <= 8 * length
    return line if whole else f"{line[: length - 1]}…"


def with_texts(records: Sequence[dict[str, Any]], texts: Sequence[str] | None) -> list[dict[str, Any]]:
    """Return the records with the text of their examples, for readers of the predictions.

    Args:
        records: One dict per example, each with ``index``.
        texts: The examples' texts by index; ``None`` leaves the records as they are.

    Returns:
        Records with the key ``text``, cut to ``SHOWN`` characters.
    """
    if texts is None:
        return list(records)
    found: list[dict[str, Any]] = []
    for record in records:
        number: int = record["index"]
        found.append(record | {"text": cut_text(texts[number])})
    return found


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


def inputs_of(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Return what the model is called with: the batch without its labels, on the device."""
    return {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}


def row_number(order: Sequence[int] | None, done: int) -> int:
    """Return the data's row number of the next example in the order of the batches."""
    return done if order is None else order[done]


def in_order(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records in the data's order.

    Args:
        records: One per example, in the order of the batches.

    Returns:
        The records by ``index``.

    Raises:
        DataError: There is none.
    """
    if not records:
        raise DataError("there is no evaluation example; give evaluation data or a larger task.validation")
    return sorted(records, key=lambda record: record["index"])


def mean(records: Sequence[Mapping[str, Any]], key: str) -> float:
    """Return the exactly summed mean of one field of the records."""
    return math.fsum(record[key] for record in records) / len(records)
