"""Sensitivity: how much the loss would move, to first order, if weights went to zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from tailora.errors import ProfileError
from tailora.signals.base import Context
from tailora.signals.statistics.mean_gradient import MeanGradient
from tailora.signals.weights import matrices


def sensitivity(context: Context, statistics: Any) -> np.ndarray:
    """Return the mean over a weight's elements of ``|W * G|`` with ``G`` the mean calibration gradient.

    GoRA (arXiv 2502.12171) shares ranks by it.  Elementwise, so that every gradient is
    kept whole once this signal is measured.  Unit: nats.

    Args:
        context: Model and targets.
        statistics: With ``MeanGradient``.

    Returns:
        float64 ``[n_targets]``.

    Raises:
        ProfileError: A weight cannot be read as numbers.
    """
    gradient = statistics[MeanGradient]
    found = np.zeros(len(context.targets), dtype=np.float64)
    for index, target in enumerate(context.targets):
        mean = gradient.mean(index)
        if mean is None:
            continue
        weight = matrices(context.model, target)
        if weight.shape != mean.shape:
            raise ProfileError(
                f"target {target.name!r} has a weight of {list(weight.shape)}, not {list(mean.shape)}; exclude it"
            )
        found[index] = float((weight.to(mean.device, mean.dtype) * mean).abs().double().mean())
    return found
