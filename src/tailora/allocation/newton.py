"""Newton: rank where a Newton step has directions worth their parameters, as far as others confirm it (ours)."""

from __future__ import annotations

import numpy as np

from tailora.allocation.problem import Problem
from tailora.errors import UserError

_TRUSTED = 0.75
"""Agreement from which on a step is taken as it is; found on the laboratory's seeds 100 and 101 and on three texts at
``r=2`` (docs/experiments), where 0.5 left too many matrices without a rank."""


def newton(problem: Problem) -> np.ndarray:
    """Return the squared singular values of a Newton step, drawn towards uniform ranks where they are not confirmed.

    With ``g_tk`` the squared singular values, ``c_tk`` what a rank costs and ``p_k`` the mean of ``g_tk / c_tk`` over
    the targets, the gain is ``a g_tk + (1 - a) c_tk p_k``.  The confidence a is the agreement over 0.75, at most 1: at
    0 every target has the same gain per parameter, which is uniform, and at 1 its own.

    Args:
        problem: The allocation problem with the signals ``newton_spectrum``, ``[n_targets, k]``, and
            ``newton_agreement``, ``[n_targets]``; option ``confidence``, from 0 to 1, is put in its place.

    Returns:
        float64 ``[n_targets, r_max]``; zero beyond the measured part of the spectrum.

    Raises:
        UserError: The option is no such number, or every value of the spectrum is zero.
    """
    given = problem.options.get("confidence")
    if given is None:
        confidence = min(1.0, float(problem.signal("newton_agreement").mean()) / _TRUSTED)
    elif isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= 1:
        confidence = float(given)
    else:
        raise UserError(f"option confidence={given!r} of the allocator 'newton' must be a number from 0 to 1")
    spectrum = problem.signal("newton_spectrum")
    columns = min(problem.r_max, spectrum.shape[1])
    worth = np.minimum.accumulate(spectrum[:, :columns] ** 2, axis=1)
    if not worth.any():
        raise UserError("signal 'newton_spectrum' is zero on every candidate target; there is no step to follow")
    costs = problem.unit_costs[:, :columns].astype(np.float64)
    # Where a matrix is too small for a rank it says nothing about what that rank is worth elsewhere.
    possible = np.arange(columns)[None, :] < np.array([target.max_rank for target in problem.targets])[:, None]
    shared = (worth / costs * possible).sum(axis=0) / np.maximum(possible.sum(axis=0), 1)
    # Of 24 bits, so that equal gain per parameter stays equal when it is divided by the cost again.
    gains = problem.per_rank(confidence * worth + (1 - confidence) * costs * shared.astype(np.float32))
    return np.minimum.accumulate(gains, axis=1)
