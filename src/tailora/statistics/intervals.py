"""The interval of a mean over seeds, and the paired t-test over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

LEVEL = 0.95
"""Coverage of every interval; a test is at the level 1 - LEVEL."""


def seed_interval(scores: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Return an interval for the mean over seeds: ``mean ± t s / sqrt(n)``, t from Student with n - 1 degrees.

    Args:
        scores: One score per seed.
        level: Coverage of the interval, for scores that scatter normally.

    Returns:
        Low end and high end, which may lie outside the range that a score can have; ``None`` for one seed.
    """
    if len(scores) < 2:
        return None
    from scipy.special import stdtrit

    reach = float(stdtrit(len(scores) - 1, (1 + level) / 2)) * stdev(scores) / math.sqrt(len(scores))
    return fmean(scores) - reach, fmean(scores) + reach


def seed_test(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the two-sided p-value of the paired t-test over seeds.

    Args:
        ours: One score per seed.
        theirs: The other side's scores of the same seeds.

    Returns:
        The p-value; 1 where both sides are equal on every seed. ``None`` for one seed, and where all differences are
        the same number: accuracies come in steps, and a spread of zero is then luck and no certainty.
    """
    from scipy.special import stdtr

    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    if len(differences) < 2:
        return None
    mean = fmean(differences)
    spread = stdev(differences)
    # Scores of 0.1 and its like differ by rounding errors where they are equal.
    fuzz = 1e-12 * max(map(abs, [*ours, *theirs]))
    if spread <= fuzz:
        return 1.0 if abs(mean) <= fuzz else None
    return 2 * float(stdtr(len(differences) - 1, -abs(mean) / spread * math.sqrt(len(differences))))
