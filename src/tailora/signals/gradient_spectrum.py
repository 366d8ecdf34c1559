"""Singular values of the calibration gradient, the mean over examples of each weight's gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tailora.signals.base import Context
from tailora.signals.statistics.mean_gradient import MeanGradient

MAX_VALUES = 256
"""Leading singular values kept per target: more ranks than any plan spends on one matrix."""


def gradient_spectrum(context: Context, statistics: Any) -> np.ndarray:
    """Return the leading singular values of ``1/N sum_n G_n`` per target, in descending order.

    By Eckart and Young (1936) the k largest squared values are what a rank-k step can capture of a full gradient step.
    For stacked experts, whose LoRA has one rank for all, the k-th value is ``sqrt(sum_e sigma_ek^2)``.  Of a sketched
    matrix the first half of the sketch's width is returned.  Unit: nats.

    Args:
        context: The targets.
        statistics: With ``MeanGradient``.

    Returns:
        float64 ``[n_targets, k]``, padded with zeros beyond what is known of a matrix.
    """
    gradient = statistics[MeanGradient]
    spectra = _empty(context)
    for index, _ in enumerate(context.targets):
        if gradient.sketched(index):
            found = gradient.values(index)
            if found is not None:
                _fill(spectra, index, found[: gradient.width // 2])
        elif (mean := gradient.mean(index)) is not None:
            _fill(spectra, index, singular_values(mean).square().sum(dim=0).sqrt())
    return spectra


def gradient_cross_spectrum(context: Context, statistics: Any) -> np.ndarray:
    """Return singular directions of one half of the data, measured on the other half.

    With ``u_k, v_k`` the k-th singular pair of half 1's mean gradient, ``u_k^T G_2 v_k`` is what that direction is
    worth on data it was not chosen on: the noise that lifts the singular values of a mean over few examples is gone
    from its expectation.  Both ways are averaged; for stacked experts the values are added over the experts' own
    directions, combined like a root of squares that keeps the sign.  Values can be negative, and are not sorted.
    Unit: nats.

    Args:
        context: The targets.
        statistics: With ``MeanGradient``.

    Returns:
        float64 ``[n_targets, k]``; zero where one half is empty.
    """
    gradient = statistics[MeanGradient]
    spectra = _empty(context)
    if not all(gradient.examples):
        return spectra
    for index, _ in enumerate(context.targets):
        if gradient.sketched(index):
            one, two = (gradient.approximate(index, half) for half in (0, 1))
            if one is not None and two is not None:
                keep = gradient.width // 2
                _fill(spectra, index, (_crossed(one, two)[:keep] + _crossed(two, one)[:keep]) / 2)
            continue
        first, second = gradient.mean(index, 0), gradient.mean(index, 1)
        if first is not None and second is not None:
            both = _cross_measured(first, second)
            signed = (both.sign() * both.square()).sum(dim=0)
            _fill(spectra, index, signed.sign() * signed.abs().sqrt())
    return spectra


def _cross_measured(first: Tensor, second: Tensor) -> Tensor:
    """Return ``u_k^T G v_k`` per expert, singular directions of each half on the other one, averaged.

    With the eigenvectors ``v`` of ``C^T C``, ``u_k = C v_k / sigma_k``, so ``u_k^T D v_k = v_k^T C^T D v_k / sigma_k``:
    the one product ``C^T D`` on the thin side serves both ways.

    Args:
        first: What one half of the data says, ``[experts, out, in]``.
        second: What the other one says.

    Returns:
        float64 ``[experts, k]``; not sorted, and negative where the halves disagree.
    """
    one, other = first.double(), second.double()
    if one.shape[1] < one.shape[2]:
        one, other = one.transpose(1, 2), other.transpose(1, 2)
    crossed = one.transpose(1, 2) @ other
    # Of directions below the rounding of the gradients themselves, or of a Gram matrix in float64, nothing is known.
    least = max(1e-7, max(first.shape[1:]) * torch.finfo(first.dtype).eps)
    grams = (half.transpose(1, 2) @ half for half in (one, other))
    return sum((_quadratic(gram, crossed, least) for gram in grams), start=torch.zeros(())) / 2


def _quadratic(gram: Tensor, crossed: Tensor, least: float) -> Tensor:
    """Return ``v_k^T X v_k / sigma_k`` for the eigenvectors of a Gram matrix, ``[experts, k]``, largest first.

    A quadratic form sees the symmetric part of ``X`` alone, so ``C^T D`` and ``D^T C`` give the same.  Directions whose
    ``sigma`` is below ``least`` times the largest count nothing.
    """
    values, v = torch.linalg.eigh(gram)
    sizes = values.clamp(min=0.0).sqrt()
    known = sizes > least * sizes.amax(dim=1, keepdim=True)
    found = torch.where(known, (v * (crossed @ v)).sum(dim=1) / sizes.clamp(min=1e-300), 0.0)
    return found.flip(1)


def singular_values(matrices: Tensor) -> Tensor:
    """Return the singular values per expert in float64, ``[experts, k]``, descending.

    Those of a float32 matrix come from its Gram matrix in float64, which is two to three times faster than a float32
    decomposition and no less exact: their squares keep 16 digits, the matrix itself has 7.

    Args:
        matrices: ``[experts, out, in]``.

    Returns:
        The values.
    """
    if matrices.dtype == torch.float64:
        return torch.linalg.svdvals(matrices)
    wide = matrices.double()
    wide = wide if wide.shape[1] < wide.shape[2] else wide.transpose(1, 2)
    return torch.linalg.eigvalsh(wide @ wide.transpose(1, 2)).clamp(min=0.0).sqrt().flip(1)


def _crossed(chosen: tuple[Tensor, Tensor, Tensor], measured: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return the same from two approximations in factors, ``[k]``."""
    u, _, v = chosen
    left, values, right = measured
    return torch.einsum("ki,i,ik->k", u.T @ left, values, right.T @ v)


def _empty(context: Context) -> np.ndarray:
    width = min(MAX_VALUES, max((target.max_rank for target in context.targets), default=0))
    return np.zeros((len(context.targets), width), dtype=np.float64)


def _fill(spectra: np.ndarray, index: int, values: Tensor) -> None:
    found = values.double().cpu().numpy()[: spectra.shape[1]]
    spectra[index, : len(found)] = found
