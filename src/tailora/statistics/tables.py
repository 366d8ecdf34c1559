"""Corrections and ranks over a whole table: Holm, wins, ties and losses, average ranks, Friedman."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FEWEST_BLOCKS = 5
FEWEST_RECIPES = 3


@dataclass(frozen=True)
class Ranks:
    """How recipes rank over the places (task, model, budget) that all of them ran in.

    Attributes:
        average: Recipe to its average rank, 1 the best; ties share the mean of their ranks.
        blocks: Number of places.
        statistic: Friedman's chi-squared; ``None`` with fewer than 5 places or 3 recipes.
        p_value: Its p-value.
    """

    average: dict[str, float]
    blocks: int
    statistic: float | None = None
    p_value: float | None = None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number after Holm (statsmodels).

    Args:
        p_values: The p-values; ``None`` where nothing was tested.

    Returns:
        The corrected p-values in the same order.
    """
    tested = [place for place, value in enumerate(p_values) if value is not None]
    corrected: list[float | None] = [None] * len(p_values)
    if not tested:
        return corrected
    from statsmodels.stats.multitest import multipletests

    found: Any = multipletests([p_values[place] for place in tested], method="holm")[1]
    for place, value in zip(tested, found, strict=True):
        corrected[place] = float(value)
    return corrected


def average_ranks(scores: Sequence[Mapping[str, float]], higher_is_better: Sequence[bool]) -> Ranks | None:
    """Rank recipes within every place, average the ranks, and test after Friedman whether they differ (scipy).

    Args:
        scores: Per place, recipe to mean score.
        higher_is_better: Per place, whether a larger score is better.

    Returns:
        Ranks of the recipes that ran in every place with more than one recipe; ``None`` with fewer than two such
        places or recipes.
    """
    import numpy as np

    kept = [(own, up) for own, up in zip(scores, higher_is_better, strict=True) if len(own) > 1]
    if len(kept) < 2:
        return None
    everywhere = [name for name in kept[0][0] if all(name in own for own, _ in kept)]
    if len(everywhere) < 2:
        return None
    from scipy import stats

    table = np.array([[own[name] * (-1 if up else 1) for name in everywhere] for own, up in kept])
    ranks = stats.rankdata(table, axis=1)
    average = dict(zip(everywhere, ranks.mean(axis=0).tolist(), strict=True))
    blocks, recipes = table.shape
    if blocks < FEWEST_BLOCKS or recipes < FEWEST_RECIPES or (ranks == ranks[:, :1]).all():
        return Ranks(average, blocks)
    result: Any = stats.friedmanchisquare(*table.T)
    return Ranks(average, blocks, float(result.statistic), float(result.pvalue))
