"""Whose labels a Fisher is taken with: the data's, the model's own draws, or all classes weighed by the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tailora.errors import UserError

Kind = Literal["empirical", "true", "true-exact"]
KINDS = ("empirical", "true", "true-exact")


@dataclass(frozen=True)
class Term:
    """One backward pass: labels, and what each example's gradient counts in it.

    Attributes:
        batch: The batch with the labels of this term.
        weights: ``[n]``.
        last: Whether the graph may be freed.
    """

    batch: Mapping[str, Any]
    weights: Tensor
    last: bool


def terms(kind: Kind, loss: str, outputs: Any, batch: Mapping[str, Any], seeds: list[int]) -> Iterator[Term]:
    """Yield the backward passes that a batch needs.

    Args:
        kind: ``empirical``, ``true`` or ``true-exact``.
        loss: Name of the per-example loss.
        outputs: The model's outputs.
        batch: The batch with the data's labels.
        seeds: One per example, so that draws depend neither on the batch nor on the padding.

    Yields:
        One term, or one per class for ``true-exact``.

    Raises:
        UserError: The loss has no distribution to draw from, or no classes to sum over.
    """
    ones = torch.ones(len(seeds))
    logits = outputs.logits.detach() if hasattr(outputs, "logits") and kind != "empirical" else None
    # What is still held here while the caller goes backwards adds to the peak: logits over a large vocabulary are much.
    del outputs
    if kind == "empirical":
        yield Term(batch, ones, True)
        return
    if kind == "true":
        if logits is None:
            raise UserError(f"kind 'true' draws labels from logits, which loss {loss!r} has not; use kind='empirical'")
        drawn = draw_labels(loss, logits, batch["labels"], seeds)
        del logits
        yield Term({**batch, "labels": drawn}, ones, True)
        return
    if loss != "classification" or logits is None:
        raise UserError(
            f"kind 'true-exact' sums over the classes of one decision per example, which loss {loss!r} has not; use "
            "kind='true'"
        )
    probabilities = logits.double().softmax(dim=-1).cpu()
    del logits
    classes = probabilities.shape[1]
    for label in range(classes):
        labels = torch.full_like(batch["labels"], label)
        yield Term({**batch, "labels": labels}, probabilities[:, label], label == classes - 1)


def draw_labels(loss: str, logits: Tensor, labels: Tensor, seeds: list[int]) -> Tensor:
    """Draw labels from the distribution whose negative log-likelihood the loss is.

    Tokens are drawn at the positions that the data labels, each given the data's own prefix.  The squared error's
    distribution is a Gaussian with the variance ``k/2`` (``k`` outputs).

    Args:
        loss: Name of the per-example loss.
        logits: ``[n, classes]``, ``[n, tokens, classes]`` or, for regression, ``[n, k]``.
        labels: The data's labels; -100 stays.
        seeds: One per example.

    Returns:
        New labels of the same shape.

    Raises:
        UserError: The loss is the caller's own.
    """
    drawn = labels.clone()
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        if loss == "regression":
            noise = torch.randn(logits[row].shape, generator=generator, dtype=torch.float64)
            width = max(logits[row].numel(), 1)
            value = logits[row].double() + (noise * (width / 2) ** 0.5).to(logits.device)
            drawn = drawn.to(logits.dtype) if not drawn.is_floating_point() else drawn
            drawn[row] = value.reshape(drawn[row].shape).to(drawn.dtype)
        elif loss == "classification":
            drawn[row] = _pick(logits[row][None], generator)[0]
        elif loss.startswith(("causal-lm", "token")):
            shift = 1 if loss.startswith("causal-lm") else 0
            places = (labels[row, shift:] != -100).nonzero()[:, 0]
            if len(places):
                drawn[row, places + shift] = _pick(logits[row, places], generator).to(drawn.dtype)
        else:
            raise UserError(f"kind 'true' cannot draw labels for loss {loss!r}; use kind='empirical'")
    return drawn


def _pick(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one class per row of ``[m, classes]`` by the inverse of the cumulative distribution."""
    sums = logits.double().softmax(dim=-1).cumsum(dim=-1)
    uniform = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64).to(sums.device)
    picked = torch.searchsorted(sums, uniform * sums[:, -1:], right=True)[:, 0]
    return picked.clamp(max=logits.shape[-1] - 1)
