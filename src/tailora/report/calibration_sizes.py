"""What more calibration examples buy: the score, and how much the plan still moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tailora.report.compare import seed_interval
from tailora.report.grids import cost_of
from tailora.report.groups import Group
from tailora.report.records import RunRecord, finite
from tailora.report.searches import split_searches
from tailora.report.settings import one_setting
from tailora.report.variants import recipe_of, variant

# The rate may be searched for every size anew; what is compared is then each size at its own rate.
_FREE = ("calibration.examples", "training.learning_rate")


@dataclass(frozen=True)
class SizePoint:
    """A recipe with one number of calibration examples.

    Attributes:
        size: Calibration examples.
        scores: The primary score of every seed.
        low: Lower end of the 95 % interval of the mean over seeds (Student's t); ``None`` for one seed.
        high: Its upper end.
        correlation: Spearman correlation over the targets between the ranks here and with the largest calibration,
            mean over seeds; ``None`` for the largest itself and where all ranks are equal.
        moved: Share of the largest calibration's parameters that lie elsewhere here, from 0 to 1, mean over seeds;
            ``None`` for the largest itself.
    """

    size: int
    scores: tuple[float, ...]
    low: float | None
    high: float | None
    correlation: float | None
    moved: float | None

    @property
    def mean(self) -> float:
        """Mean score over seeds."""
        return fmean(self.scores)


@dataclass(frozen=True)
class SizeCurve:
    """A recipe over several calibration sizes.

    Attributes:
        recipe: The recipe, without the labels that tell its sizes apart.
        primary: Name of the score.
        higher_is_better: Whether a larger score is better.
        points: Smallest calibration first.
        notes: What a reader must know about how the runs were chosen.
    """

    recipe: str
    primary: str
    higher_is_better: bool
    points: tuple[SizePoint, ...]
    notes: tuple[str, ...] = ()


def size_curves(runs: Iterable[RunRecord], group: Group) -> list[SizeCurve]:
    """Collect the recipes of a group that were run with several calibration sizes.

    Runs belong together that differ in ``calibration.examples``, label, learning rate and seed only.

    Args:
        runs: Finished runs.
        group: The task, model and budget.

    Returns:
        One curve per recipe with at least two sizes; empty where there is none.
    """
    finals, _ = split_searches(runs)
    families: dict[tuple[str, str], dict[int, list[RunRecord]]] = {}
    for run in finals:
        size = calibration_size(run)
        if (run.kind, run.task, run.model, run.budget) == (group.kind, *group.place) and size is not None:
            families.setdefault((recipe_of(run), variant(run, _FREE)), {}).setdefault(size, []).append(run)
    kept = {key: sizes for key, sizes in families.items() if len(sizes) > 1}
    twins = [recipe for recipe, _ in kept]
    return [
        _curve(recipe if twins.count(recipe) == 1 else f"{recipe} ({_first_label(sizes)})", sizes)
        for (recipe, _), sizes in kept.items()
    ]


def calibration_size(run: RunRecord) -> int | None:
    """Return how many examples a run's profile was measured on, where its configuration says."""
    section = run.config.get("calibration")
    size = finite(section.get("examples")) if isinstance(section, Mapping) else None
    return int(size) if size and size > 0 else None


def moved_share(plan: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """Return the share of a plan's parameters that another plan does not spend on the same target.

    Args:
        plan: The plan whose parameters are counted.
        other: Where they may lie instead.

    Returns:
        From 0 (the same targets, as many each) to 1; ``None`` for a plan without parameters.
    """
    there = {str(target["name"]): cost_of(target) for target in other["targets"]}
    here = {str(target["name"]): cost_of(target) for target in plan["targets"]}
    total = sum(here.values())
    return sum(max(0, cost - there.get(name, 0)) for name, cost in here.items()) / total if total else None


def rank_correlation(plan: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """Return Spearman's correlation between two plans' ranks over the targets that both list.

    Args:
        plan: A plan.
        other: Another one.

    Returns:
        From -1 to 1; ``None`` where either deals all targets the same rank, or there are fewer than three.
    """
    from scipy.stats import spearmanr

    there = {str(target["name"]): float(target["rank"]) for target in other["targets"]}
    pairs = [
        (float(target["rank"]), there[str(target["name"])])
        for target in plan["targets"]
        if str(target["name"]) in there
    ]
    one, two = [first for first, _ in pairs], [second for _, second in pairs]
    if len(pairs) < 3 or len(set(one)) == 1 or len(set(two)) == 1:
        return None
    result: Any = spearmanr(one, two)
    return float(result.statistic)


def _curve(recipe: str, sizes: Mapping[int, Sequence[RunRecord]]) -> SizeCurve:
    notes: list[str] = []
    chosen = {
        size: one_setting(f"{recipe} with {size:,} calibration examples", members, notes)
        for size, members in sorted(sizes.items())
    }
    largest = max(chosen)
    reference = {run.seed: run for run in chosen[largest]}
    points = []
    for size, members in chosen.items():
        scores = tuple(run.score for run in members)
        interval = seed_interval(scores)
        low, high = interval if interval else (None, None)
        # Seeds share a profile, and with it the plan, unless the recipe itself draws lots.
        pairs = [(reference.get(run.seed, chosen[largest][0]), run) for run in members] if size != largest else []
        moved = _mean(moved_share(full.plan, run.plan) for full, run in pairs)
        same = _mean(rank_correlation(full.plan, run.plan) for full, run in pairs)
        points.append(SizePoint(size, scores, low, high, same, moved))
    first = chosen[largest][0]
    return SizeCurve(recipe, first.primary, first.higher_is_better, tuple(points), tuple(notes))


def _mean(values: Iterable[float | None]) -> float | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return fmean(known) if known and len(known) == len(found) else None


def _first_label(sizes: Mapping[int, Sequence[RunRecord]]) -> str:
    return sizes[min(sizes)][0].recipe
