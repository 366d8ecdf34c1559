"""Ranks in proportion to one score per target, as FIM-LoRA deals them by Fisher information."""

from __future__ import annotations

import numpy as np

from tailora.allocation.problem import Problem
from tailora.errors import UserError


def scores(problem: Problem) -> np.ndarray:
    """Return one non-negative score per target.

    The signal named by the option ``signal`` (default ``fisher``) is read; of a two-dimensional signal, such as a
    spectrum, the energy (sum of squares) counts.  With ``per_element`` (the default, FIM-LoRA's mean over the matrix's
    elements) the score is divided by the number of elements.

    Args:
        problem: The allocation problem.

    Returns:
        float64 ``[n_targets]``.

    Raises:
        UserError: A score is negative or not finite.
    """
    name = str(problem.options.get("signal", "fisher"))
    values = problem.signal(name)
    values = values if values.ndim == 1 else (values.reshape(len(values), -1) ** 2).sum(axis=1)
    if not np.isfinite(values).all() or (values < 0).any():
        bad = problem.targets[int(np.argmax(~np.isfinite(values) | (values < 0)))].name
        raise UserError(f"signal {name!r} of target {bad!r} is negative or not finite; profile again")
    if problem.options.get("per_element", True):
        values = values / np.array([t.shape[0] * t.shape[1] * t.experts for t in problem.targets], dtype=np.float64)
    return values


def divisor_gains(problem: Problem, score: np.ndarray) -> np.ndarray:
    """Return gains whose greedy filling makes ranks proportional to ``score``.

    Dividing by ``k - 1/2`` is Sainte-Lague's divisor rule: ranks follow the exact shares, rounded to the nearest whole
    number, for every budget at once.  The gain is multiplied by the cost because filling goes by gain per parameter
    and the rule splits ranks.

    Args:
        problem: The allocation problem.
        score: float64 ``[n_targets]``.

    Returns:
        float64 ``[n_targets, r_max]``.
    """
    divisors = np.arange(1, problem.r_max + 1, dtype=np.float64) - 0.5
    return problem.unit_costs * (score[:, None] / divisors[None, :])


def proportional(problem: Problem) -> np.ndarray:
    """Return gains that deal ranks in proportion to the score, fitted to the budget in parameters.

    Args:
        problem: The allocation problem; options ``signal``, ``per_element``.

    Returns:
        float64 ``[n_targets, r_max]``.
    """
    return divisor_gains(problem, scores(problem))


def faithful_proportional(problem: Problem) -> np.ndarray:
    """Return the ranks FIM-LoRA's published rule gives, whatever they cost in parameters.

    The rule keeps the *sum of ranks* at ``n_targets * r``: shares proportional to the score, clamped to
    ``[r_min, 2 r]`` with the excess shared among the others, then rounded by largest remainder (ties by target order).
    ``r`` is the whole rank that the budget buys on every target.  The released code lets the sum drift when targets
    saturate; the rule as described, implemented here, keeps it.

    Args:
        problem: The allocation problem; options ``signal``, ``per_element`` and ``faithful_r_min`` (default 1).

    Returns:
        int64 ``[n_targets]``.
    """
    base = max(1, int(problem.uniform_rank + 1e-9))
    total = base * len(problem.targets)
    low = min(int(problem.options.get("faithful_r_min", 1)), base)
    high = np.array([min(2 * base, t.max_rank) for t in problem.targets], dtype=np.float64)
    score = scores(problem)
    score = np.full_like(score, 1.0) if score.sum() == 0 else score / score.max()
    exact = _water_fill(score, float(total), float(low), high)
    ranks = np.floor(exact + 1e-9).astype(np.int64)
    missing = min(total, int(high.sum())) - int(ranks.sum())
    remainder = np.where(ranks < high, exact - ranks, -1.0)
    for index in np.argsort(-remainder, kind="stable")[: max(missing, 0)]:
        ranks[index] += 1
    return ranks


def _water_fill(score: np.ndarray, total: float, low: float, high: np.ndarray) -> np.ndarray:
    """Return ``clip(level * score, low, high)`` with the level that makes the sum equal ``total``."""
    target_sum = min(total, float(high.sum()))
    lower, upper = 0.0, 1.0
    for _ in range(200):
        if np.clip(upper * score, low, high).sum() >= target_sum or upper > 1e300:
            break
        upper *= 2.0
    for _ in range(200):
        level = (lower + upper) / 2
        if np.clip(level * score, low, high).sum() < target_sum:
            lower = level
        else:
            upper = level
    filled = np.clip(upper * score, low, high)
    # Targets without any score cannot rise by proportion; what they leave is shared evenly below the caps.
    short = target_sum - filled.sum()
    while short > 1e-9:
        room = filled < high
        if not room.any():
            break
        step = np.where(room, np.minimum(high - filled, short / room.sum()), 0.0)
        filled = filled + step
        short = target_sum - filled.sum()
    return filled
