"""Norm of the mean calibration gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from tailora.signals.base import Context
from tailora.signals.statistics.mean_gradient import MeanGradient


def gradient_norm(context: Context, statistics: Any) -> np.ndarray:
    """Return ``||1/N sum_n G_n||_F`` per target.

    Of a sketched matrix it is the norm of the approximation, which is a little too small.  Unit: nats.

    Args:
        context: The targets.
        statistics: With ``MeanGradient``.

    Returns:
        float64 ``[n_targets]``; 0 where the loss does not reach the target.
    """
    gradient = statistics[MeanGradient]
    norms = np.zeros(len(context.targets), dtype=np.float64)
    for index, _ in enumerate(context.targets):
        if gradient.sketched(index):
            found = gradient.values(index)
            norms[index] = 0.0 if found is None else float(found.square().sum().sqrt())
        else:
            mean = gradient.mean(index)
            norms[index] = 0.0 if mean is None else float(mean.double().norm())
    return norms
