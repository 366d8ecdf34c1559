"""Uniform: the same rank everywhere, the baseline every other allocator has to beat."""

from __future__ import annotations

import numpy as np

from tailora.allocation.problem import Problem


def uniform(problem: Problem) -> np.ndarray:
    """Return gains equal to costs, so that every rank has the same gain per parameter and ties deal them in turn.

    Args:
        problem: The allocation problem.

    Returns:
        float64 ``[n_targets, r_max]``.
    """
    return problem.unit_costs.astype(np.float64)
