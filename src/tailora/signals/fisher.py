"""Fisher trace per target: the mean over examples of the squared gradient of the full weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from tailora.signals.base import Context
from tailora.signals.statistics.example_norms import ExampleNorms


def fisher(context: Context, statistics: Any) -> np.ndarray:
    """Return the trace of the empirical Fisher of each weight.

    ``F = 1/N sum_n ||G_n||_F^2`` with ``G_n`` the gradient of example n's own loss under its data label (Sung et al.
    2021, arXiv 2111.09839, eq. 5, summed over the elements of a matrix).  It is the mean over *examples* of squares,
    never the square of a batch mean.  With labels drawn from the model it is the true Fisher.  Unit: nats squared.

    Args:
        context: Not used.
        statistics: With ``ExampleNorms``.

    Returns:
        float64 ``[n_targets]``.
    """
    norms = statistics[ExampleNorms]
    return (norms.halves().sum(dim=1) / max(norms.examples, 1)).numpy()
