"""Labels drawn from the model's own predictions, which make the Fisher the true one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tailora.errors import UserError
from tailora.signals.losses import IGNORED_LABEL


def model_labels(
    kind: str, outputs: Any, batch: Mapping[str, Any], numbers: Sequence[int], seed: int
) -> dict[str, Any]:
    """Return the batch with its labels replaced by a draw from the model's predictions.

    ``F = E_x E_(y ~ p(y|x)) [g g^T]`` (Martens 2020, arXiv 1412.1193, section 5) needs labels of the model; with the
    data's labels it is the empirical Fisher.  Only labels that count are drawn.  Each example draws from a generator of
    its own, made of its content and the seed, so that its labels do not depend on the batch it is in.

    Args:
        kind: Name of the loss.
        outputs: The model's outputs with ``logits``.
        batch: The batch.
        numbers: One number per row, made of its content.
        seed: The seed.

    Returns:
        A new dict; the given one stays as it is.

    Raises:
        UserError: The loss is a callable, whose distribution is not known.
    """
    labels, logits = batch["labels"], outputs.logits.detach()
    if kind == "classification":
        drawn = _draw(logits.float(), _uniform(numbers, seed, 1, logits)[:, 0])
    elif kind == "regression":
        # The squared error is the negative log-likelihood, up to constants, of a Gaussian with variance 1/2.
        noise = _normal(numbers, seed, max(1, logits[0].numel()), logits).reshape(logits.shape)
        drawn = (logits + noise * 0.5**0.5).reshape(labels.shape).to(labels.dtype)
    elif kind.startswith(("causal-lm", "token")):
        shift = 1 if kind.startswith("causal-lm") else 0
        uniform = _uniform(numbers, seed, labels.shape[1], logits)
        tokens = _draw(logits[:, : labels.shape[1] - shift].float(), uniform[:, shift:])
        drawn = labels.clone()
        drawn[:, shift:] = torch.where(labels[:, shift:] == IGNORED_LABEL, labels[:, shift:], tokens)
    else:
        raise UserError(f"labels='model' needs a loss whose distribution is known, not {kind!r}; use labels='data'")
    return {**batch, "labels": drawn}


def _draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return a class per position by inverting the cumulative probabilities."""
    cumulative = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
    found = torch.searchsorted(cumulative, (uniform * cumulative[..., -1])[..., None]).squeeze(-1)
    return found.clamp(max=logits.shape[-1] - 1)


def _uniform(numbers: Sequence[int], seed: int, size: int, like: Tensor) -> Tensor:
    rows = [torch.rand(size, generator=_generator(number, seed), dtype=torch.float64) for number in numbers]
    return torch.stack(rows).to(like.device)


def _normal(numbers: Sequence[int], seed: int, size: int, like: Tensor) -> Tensor:
    rows = [torch.randn(size, generator=_generator(number, seed), dtype=torch.float64) for number in numbers]
    return torch.stack(rows).to(like.device, like.dtype)


def _generator(number: int, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed((number ^ (seed * 0x9E3779B97F4A7C15)) & (2**63 - 1))
