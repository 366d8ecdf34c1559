"""Ranks in the order of the inputs' explained-variance ratios, as EVA redistributes them."""

from __future__ import annotations

import numpy as np

from tailora.allocation.problem import Problem
from tailora.errors import UserError


def _ratios(problem: Problem) -> np.ndarray:
    """Return the ratios, float64 ``[n_targets, r_max]``, zero beyond what was measured."""
    name = str(problem.options.get("signal", "explained_variance"))
    measured = problem.signal(name)
    if measured.ndim != 2 or not np.isfinite(measured).all() or (measured < 0).any():
        raise UserError(f"signal {name!r} is no spectrum of shares; measure 'explained_variance'")
    ratios = problem.per_rank(measured)
    if not ratios.any():
        raise UserError(f"signal {name!r} is zero on every candidate target; profile with data that reaches them")
    return np.minimum.accumulate(ratios, axis=1)


def explained_variance(problem: Problem) -> np.ndarray:
    """Return gains whose greedy filling deals ranks in the order of the ratios, fitted to the budget in parameters.

    EVA (Paischer et al. 2024, arXiv 2410.07170) sorts the components of all targets by the share of their own input's
    variance that they explain and keeps the largest ones, whatever a rank costs; the gain is multiplied by the cost
    because filling goes by gain per parameter.

    Args:
        problem: The allocation problem; option ``signal`` (default ``explained_variance``).

    Returns:
        float64 ``[n_targets, r_max]``.

    Raises:
        UserError: The signal is no spectrum of shares.
    """
    # The first rank may cost more (DoRA), which would break the order along the rank axis: costs of the plain rank.
    gains = _ratios(problem) * problem.unit_costs
    return np.minimum.accumulate(gains, axis=1)


def faithful_explained_variance(problem: Problem) -> np.ndarray:
    """Return the ranks of EVA's own rule: the ``n_targets * r`` largest ratios, at most ``rho * r`` on a target.

    ``r`` is the whole rank that the budget buys on every target.  peft's implementation is followed; ties go by target
    and component.

    Args:
        problem: The allocation problem; options ``signal`` and ``rho`` (default 2, as in peft).

    Returns:
        int64 ``[n_targets]``.

    Raises:
        UserError: The signal is no spectrum of shares, or ``rho`` is below 1.
    """
    rho = float(problem.options.get("rho", 2.0))
    if not rho >= 1:
        raise UserError(f"allocation option rho={rho:g} is below 1; EVA's rho says how many times r a target may get")
    base = max(1, int(problem.uniform_rank + 1e-9))
    ratios = _ratios(problem)
    limits = np.array([min(round(base * rho), target.max_rank, ratios.shape[1]) for target in problem.targets])
    allowed = np.arange(ratios.shape[1])[None, :] < limits[:, None]
    order = np.argsort(-np.where(allowed, ratios, -1.0), axis=None, kind="stable")
    chosen = order[: min(base * len(problem.targets), int(allowed.sum()))]
    return np.bincount(chosen // ratios.shape[1], minlength=len(problem.targets)).astype(np.int64)
