"""Signals of a layer's inputs and output gradients: second moments and their spectra."""

from __future__ import annotations

from typing import Any

import numpy as np

from tailora.signals.base import Context
from tailora.signals.statistics.moments import InputMoments, Moments, OutputGradientMoments
from tailora.signals.statistics.squares import InputSquares, OutputGradientSquares


def activation_second_moment(context: Context, statistics: Any) -> np.ndarray:
    """Return the mean over real positions of ``||a||^2``: the trace of K-FAC's input factor.

    Martens and Grosse 2015, arXiv 1503.05671.  Unit: squared activation.

    Args:
        context: The targets.
        statistics: With ``InputSquares``.

    Returns:
        float64 ``[n_targets]``.
    """
    return statistics[InputSquares].means().numpy()


def output_gradient_second_moment(context: Context, statistics: Any) -> np.ndarray:
    """Return the mean over real positions of ``||g||^2``: the trace of K-FAC's output factor.

    ``g`` is the gradient of the example's own loss at the target's output.  Unit: (nats per activation) squared.

    Args:
        context: The targets.
        statistics: With ``OutputGradientSquares``.

    Returns:
        float64 ``[n_targets]``.
    """
    return statistics[OutputGradientSquares].means().numpy()


def activation_spectrum(context: Context, statistics: Any) -> np.ndarray:
    """Return the leading singular values of a target's inputs, ``sqrt`` of the eigenvalues of ``E[a a^T]``.

    Unit: activation.

    Args:
        context: The targets.
        statistics: With ``InputMoments``.

    Returns:
        float64 ``[n_targets, k]`` in descending order, padded with zeros.
    """
    return np.sqrt(_eigenvalues(context, statistics[InputMoments], centred=False)[0])


def output_gradient_spectrum(context: Context, statistics: Any) -> np.ndarray:
    """Return ``sqrt`` of the leading eigenvalues of ``E[g g^T]``, K-FAC's output factor.

    Unit: nats per activation.

    Args:
        context: The targets.
        statistics: With ``OutputGradientMoments``.

    Returns:
        float64 ``[n_targets, k]`` in descending order, padded with zeros.
    """
    return np.sqrt(_eigenvalues(context, statistics[OutputGradientMoments], centred=False)[0])


def explained_variance(context: Context, statistics: Any) -> np.ndarray:
    """Return EVA's explained-variance ratios: eigenvalues of the inputs' covariance over their sum.

    Paischer et al. 2024, arXiv 2410.07170, deal ranks in the order of these ratios.  The mean is taken out, as peft's
    incremental PCA does.  Unit: share of the variance.

    Args:
        context: The targets.
        statistics: With ``InputMoments``.

    Returns:
        float64 ``[n_targets, k]`` in descending order, padded with zeros.
    """
    values, traces = _eigenvalues(context, statistics[InputMoments], centred=True)
    return values / np.where(traces > 0, traces, 1.0)[:, None]


def _eigenvalues(context: Context, moments: Moments, *, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    found = [moments.eigenvalues(index, centred=centred) for index, _ in enumerate(context.targets)]
    values = np.zeros((len(found), max((len(held) for held, _ in found), default=0)), dtype=np.float64)
    for index, (held, _) in enumerate(found):
        values[index, : len(held)] = held.numpy()
    return values, np.array([trace for _, trace in found], dtype=np.float64)
