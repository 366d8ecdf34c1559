"""Scores: the share of the oracle's gap that a contestant closed, and how its ranks match the planted ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_DRAWS = 10_000
_SMALL_GAP = 0.05


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
        mean: The estimate.
        low: Lower end, NaN with fewer than two values.
        high: Upper end.
    """

    mean: float
    low: float
    high: float


def gap_closed(uniform: float, method: float, oracle: float) -> float:
    """Return ``(L_uniform - L_method) / (L_uniform - L_oracle)``.

    Args:
        uniform: Held-out loss of uniform LoRA.
        method: Of the method.
        oracle: Of the oracle.

    Returns:
        1 for the oracle, 0 for uniform, negative for worse than uniform; NaN where the oracle gains less than 5 % of
        uniform's loss, since dividing by nothing says nothing.
    """
    gap = uniform - oracle
    return (uniform - method) / gap if gap > _SMALL_GAP * uniform else math.nan


def student_interval(values: Sequence[float]) -> Interval:
    """Return the mean and Student's 95 % interval over seeds; values that are not finite are left out."""
    from tailora.allocation.gelora_noise import student

    held = np.array([value for value in values if math.isfinite(value)])
    if len(held) < 2:
        return Interval(float(held.mean()) if len(held) else math.nan, math.nan, math.nan)
    width = student(len(held) - 1) * float(held.std(ddof=1)) / math.sqrt(len(held))
    return Interval(float(held.mean()), float(held.mean()) - width, float(held.mean()) + width)


def ratio_interval(gains: Sequence[float], gaps: Sequence[float], seed: int = 0) -> Interval:
    """Return the ratio of two means over seeds and its bootstrap interval, which a seed with a small gap cannot upset.

    Args:
        gains: ``L_uniform - L_method`` per seed.
        gaps: ``L_uniform - L_oracle`` per seed.
        seed: Of the resampling.

    Returns:
        Ratio of the means, percentile interval over 10,000 resamples of the seeds.
    """
    top, bottom = np.asarray(gains, dtype=np.float64), np.asarray(gaps, dtype=np.float64)
    if not len(top) or bottom.mean() <= 0:
        return Interval(math.nan, math.nan, math.nan)
    ratio = float(top.mean() / bottom.mean())
    if len(top) < 2:
        return Interval(ratio, math.nan, math.nan)
    rows = np.random.default_rng(seed).integers(0, len(top), (_DRAWS, len(top)))
    below = bottom[rows].mean(axis=1)
    drawn = top[rows].mean(axis=1)[below > 0] / below[below > 0]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(ratio, float(low), float(high))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation, ties sharing their mean rank; 0 where one side does not vary.

    Args:
        first: Numbers.
        second: As many.

    Returns:
        From -1 to 1.
    """
    a, b = _mean_ranks(np.asarray(first, dtype=np.float64)), _mean_ranks(np.asarray(second, dtype=np.float64))
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2)[inverse]


def matches(planted: Mapping[str, int], ranks: Mapping[str, int]) -> dict[str, float]:
    """Return how well ranks match the planted ones.

    A target counts as found where it has more than the uniform share, the mean rank over the candidates.

    Args:
        planted: Name of every candidate to its planted rank.
        ranks: To its rank in the plan.

    Returns:
        ``spearman``, ``precision`` and ``recall`` of the planted targets (0 where nothing stands out), and
        ``covered``, the share of the planted ranks that the plan has: ``sum min(rank, planted) / sum planted``.
    """
    names = list(planted)
    dealt = [ranks.get(name, 0) for name in names]
    level = sum(dealt) / len(dealt)
    found = {name for name, rank in zip(names, dealt, strict=True) if rank > level}
    true = {name for name in names if planted[name]}
    both = len(found & true)
    covered = sum(min(ranks.get(name, 0), planted[name]) for name in names) / sum(planted.values())
    return {
        "spearman": spearman([planted[name] for name in names], dealt),
        "precision": both / len(found) if found else 0.0,
        "recall": both / len(true),
        "covered": covered,
    }
