"""Spectral: rank where the calibration gradient has directions worth their parameters (ours)."""

from __future__ import annotations

import numpy as np

from tailora.allocation.problem import Problem
from tailora.errors import UserError


def spectral(problem: Problem) -> np.ndarray:
    """Return the squared singular values of the calibration gradient.

    The best rank-k approximation of a gradient step captures ``sum of the k largest squared singular values`` of it
    (Eckart-Young), so the marginal gain of the k-th rank is the k-th squared singular value; ``allocate`` divides it by
    the parameters it costs.

    Args:
        problem: The allocation problem; option ``signal`` (default ``gradient_spectrum``) names a spectrum of singular
            values, ``[n_targets, k]``; of ``gradient_cross_spectrum`` negative values count as nothing.

    Returns:
        float64 ``[n_targets, r_max]``; zero beyond the measured part of the spectrum.

    Raises:
        UserError: The signal is not a spectrum, or every value of it is zero.
    """
    name = str(problem.options.get("signal", "gradient_spectrum"))
    spectrum = problem.signal(name)
    if spectrum.ndim != 2:
        raise UserError(
            f"signal {name!r} has one value per target; 'spectral' needs a spectrum such as 'gradient_spectrum'"
        )
    # A cross-fitted spectrum is neither sorted nor positive: what one half of the data says does not hold on the other.
    gains = problem.per_rank(-np.sort(-(np.maximum(spectrum, 0.0) ** 2), axis=1))
    if not gains.any():
        raise UserError(f"signal {name!r} is zero on every candidate target: the calibration loss does not reach them")
    # Singular values arrive sorted; squaring in float can break a tie by one unit in the last place.
    return np.minimum.accumulate(gains, axis=1)
