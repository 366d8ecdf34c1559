"""Pilot: rank where a short training of a larger adapter went, and where that took something off the loss (ours)."""

from __future__ import annotations

import numpy as np

from tailora.allocation.problem import Problem
from tailora.errors import UserError

GAINS = ("both", "spectrum", "worth")


def pilot(problem: Problem) -> np.ndarray:
    """Return the geometric mean of how large each direction of the pilot's update is and of what it is worth.

    Size alone (squared singular values) counts what an optimizer that normalises its steps has learned from noise;
    worth alone (integrated gradients on other examples) is unbiased and noisy, and sees a direction's own part only.

    Args:
        problem: The allocation problem with the signals ``pilot_spectrum`` and ``pilot_worth``, ``[n_targets, k]``;
            option ``gain`` is ``both``, ``spectrum`` or ``worth``.

    Returns:
        float64 ``[n_targets, r_max]``; zero beyond the pilot's rank and where nothing was gained.

    Raises:
        UserError: The option is unknown, or the pilot gained nothing anywhere.
    """
    gain = str(problem.options.get("gain", "both"))
    if gain not in GAINS:
        raise UserError(f"option gain={gain!r} of the allocator 'pilot' is not known; use {' or '.join(GAINS)}")
    size, worth = np.ones(1), np.ones(1)
    if gain != "worth":
        size = -np.sort(-(problem.signal("pilot_spectrum") ** 2), axis=1)
    if gain != "spectrum":
        worth = -np.sort(-np.maximum(problem.signal("pilot_worth"), 0.0), axis=1)
    found = np.sqrt(size * worth) if gain == "both" else size * worth
    gains = problem.per_rank(found)
    if not gains.any():
        raise UserError("the pilot's update took nothing off the loss of any candidate; lengthen the pilot")
    return np.minimum.accumulate(gains, axis=1)
