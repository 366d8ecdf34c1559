"""McNemar's test and its relatives: which of two models is right more often, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

EXACT_BELOW = 25
"""McNemar's test is exact with fewer discordant examples than this (Cohen, Psychological Methods 2000, and others)."""


def mcnemar(gained: int, lost: int) -> float:
    """Return McNemar's two-sided p-value (statsmodels).

    Args:
        gained: Examples that only the first model got right.
        lost: Examples that only the second got right.

    Returns:
        The p-value: exact binomial below 25 discordant examples, else chi-squared with Edwards' correction; 1 without
        any.
    """
    if gained + lost == 0:
        return 1.0
    from statsmodels.stats.contingency_tables import mcnemar as test

    result: Any = test([[0, gained], [lost, 0]], exact=gained + lost < EXACT_BELOW, correction=True)
    return min(1.0, float(result.pvalue))


def sign_flip(totals: Sequence[int] | np.ndarray) -> float:
    """Return the exact two-sided p-value of a sum of whole numbers whose signs are up to chance.

    With one seed, where a total is -1, 0 or 1, this is McNemar's exact test. With several, an example's total is by how
    many seeds more one side got it right, and an example counts once however many seeds saw it (the clustered pairs
    of Durkalski et al., Statistics in Medicine 2003, made exact).

    Args:
        totals: One whole number per example, recipe minus baseline.

    Returns:
        ``P(|sum of ± totals| >= |sum of totals|)``.
    """
    import numpy as np
    from scipy.special import bdtr

    values = np.asarray(totals, dtype=np.int64)
    sizes = np.abs(values)
    chances = np.ones(1)
    for size in np.unique(sizes[sizes > 0]).tolist():
        number = int((sizes == size).sum())
        up_to = bdtr(np.arange(number + 1, dtype=float), number, 0.5)
        # With j of them negative the sum falls by 2 j size; the array holds the sums in steps of 2.
        spaced = np.zeros(number * size + 1)
        spaced[::size] = np.diff(up_to, prepend=0.0)
        chances = np.convolve(chances, spaced)
    top = len(chances) - 1
    sums = top - 2 * np.arange(top + 1)
    return min(1.0, float(chances[np.abs(sums) >= abs(int(values.sum()))].sum()))
