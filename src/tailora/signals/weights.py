"""Signals of the weights alone: no data, no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tailora.errors import ProfileError
from tailora.offloaded import present
from tailora.signals.base import Context
from tailora.signals.gradient_spectrum import MAX_VALUES
from tailora.signals.orientation import oriented
from tailora.targets import Target


def matrices(model: nn.Module, target: Target) -> Tensor:
    """Return a target's weight.

    Args:
        model: The model.
        target: The target.

    Returns:
        ``[experts, out, in]``, in float32 or float64; a quantised weight is dequantised.

    Raises:
        ProfileError: The weight is stored in a form that cannot be read as numbers.
    """
    module, _, key = target.name.rpartition(".") if target.kind == "parameter" else (target.name, "", "")
    owner: Any = model.get_submodule(module)
    with present(owner):
        weight: Any = getattr(owner, key) if key else _dequantised(owner)
        weight = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    if weight.is_meta:
        raise ProfileError(
            f"the weight of {target.name!r} is on the meta device and has no values; load the model's weights, or "
            "leave signals of the weights out"
        )
    if not weight.is_floating_point():
        raise ProfileError(
            f"the weight of {target.name!r} is stored as {weight.dtype} and cannot be read as numbers; leave signals "
            "of the weights out, or load the model unquantised"
        )
    weight = weight.detach()
    weight = weight.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    return oriented(target, owner, weight)


def weight_spectrum(context: Context, statistics: Any = None) -> np.ndarray:
    """Return the leading singular values of each weight; experts combined by the root of summed squares.

    Unit: weight.

    Args:
        context: Model and targets.
        statistics: Not used.

    Returns:
        float64 ``[n_targets, k]`` in descending order, padded with zeros.
    """
    width = min(MAX_VALUES, max((target.max_rank for target in context.targets), default=0))
    spectra = np.zeros((len(context.targets), width), dtype=np.float64)
    for index, values in enumerate(_singular_values(context)):
        combined = np.sqrt((values**2).sum(axis=0))[:width]
        spectra[index, : len(combined)] = combined
    return spectra


def stable_rank(context: Context, statistics: Any = None) -> np.ndarray:
    """Return ``||W||_F^2 / ||W||_2^2``, the mean over experts: how many directions carry the weight's energy.

    Rudelson and Vershynin 2007, doi 10.1145/1255443.1255449.  Unit: directions, from 1 to the smaller side.

    Args:
        context: Model and targets.
        statistics: Not used.

    Returns:
        float64 ``[n_targets]``; 0 for a weight of zeros.
    """
    return _each(context, lambda s: (s**2).sum() / s[0] ** 2 if s[0] > 0 else 0.0)


def condition_number(context: Context, statistics: Any = None) -> np.ndarray:
    """Return the largest over the smallest singular value, the mean over experts.

    KappaTune (github.com/oswaldoludwig/kappaTune; peft's ``KappaTuneSelector``) tunes the matrices with the smallest
    ones.  Unit: none.

    Args:
        context: Model and targets.
        statistics: Not used.

    Returns:
        float64 ``[n_targets]``; the largest float where the smallest singular value is 0.
    """
    return _each(context, lambda s: s[0] / s[-1] if s[-1] > 0 else np.finfo(np.float64).max)


def weight_snr(context: Context, statistics: Any = None) -> np.ndarray:
    """Return Spectrum's signal-to-noise ratio of each weight, the mean over experts.

    Singular values above the edge that Marchenko and Pastur's law gives for pure noise are signal, the others noise;
    the ratio of their sums, divided by the largest singular value (Hartford et al. 2024, arXiv 2406.06623).  The
    noise's scale is the interquartile range of the singular values over 1.349.  The division by the largest one is
    written from memory of the released code, not checked against it.  Unit: one over weight.

    Args:
        context: Model and targets.
        statistics: Not used.

    Returns:
        float64 ``[n_targets]``; 0 where nothing rises above the noise; the sum over the largest value where nothing
        lies below it.
    """
    found = np.zeros(len(context.targets), dtype=np.float64)
    for index, (target, values) in enumerate(zip(context.targets, _singular_values(context), strict=True)):
        found[index] = np.mean([_snr(row, target.shape) for row in values])
    return found


def _snr(values: np.ndarray, shape: tuple[int, int]) -> float:
    if values[0] <= 0:
        return 0.0
    upper, lower = np.quantile(values, [0.75, 0.25])
    sigma = (upper - lower) / 1.3490
    beta = min(shape) / max(shape)
    edge = np.sqrt(max((sigma**2) * (1 + np.sqrt(beta)) ** 2, 0.0))
    signal, noise = values[values > edge].sum(), values[values <= edge].sum()
    return float((signal / noise if noise > 0 else signal) / values[0])


def _each(context: Context, measure: Callable[[np.ndarray], float]) -> np.ndarray:
    found = [np.mean([measure(row) for row in values]) for values in _singular_values(context)]
    return np.array(found, dtype=np.float64)


def _singular_values(context: Context) -> list[np.ndarray]:
    """Return float64 ``[experts, k]`` per target; taken in the weight's own precision, once for all signals."""
    if "singular values" not in context.cache:
        weights = (matrices(context.model, target) for target in context.targets)
        context.cache["singular values"] = [torch.linalg.svdvals(weight).double().cpu().numpy() for weight in weights]
    return context.cache["singular values"]


def _dequantised(module: nn.Module) -> Tensor:
    """Return the weight of a linear layer, unpacked where it is quantised."""
    weight: Any = module.weight
    if not weight.is_floating_point() or hasattr(weight, "dequantize"):
        from peft.utils.integrations import dequantize_module_weight

        with_methods: Any = weight
        try:
            return (
                with_methods.dequantize() if hasattr(with_methods, "tensor_impl") else dequantize_module_weight(module)
            )
        except (AttributeError, TypeError, ValueError, NotImplementedError):
            return weight
    return weight
