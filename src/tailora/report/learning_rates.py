"""Score against learning rate: what a search on the validation split chose, what it cost, and where it hit an edge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tailora.report import formats
from tailora.report.groups import Group
from tailora.report.records import Problem, RunRecord, Runs, finite
from tailora.report.searches import final_place, split_searches
from tailora.report.settings import by_design
from tailora.report.variants import variant

_RATE = ("training.learning_rate",)


@dataclass(frozen=True)
class RatePoint:
    """One recipe at one learning rate.

    Attributes:
        rate: The learning rate.
        scores: The primary score of every seed.
        loss: Mean loss, where every seed has one.
    """

    rate: float
    scores: tuple[float, ...]
    loss: float | None

    @property
    def mean(self) -> float:
        """Mean score over seeds."""
        return fmean(self.scores)


@dataclass(frozen=True)
class RateCurve:
    """One recipe over its learning rates.

    Attributes:
        recipe: The recipe.
        points: The rates that finished, smallest first.
        failed: Rates at which no run finished, as one that diverges.
        chosen: Rate of the final runs; ``None`` where there are none yet.
        higher_is_better: Whether a larger score is better.
        runs: How many runs the curve is made of.
        train_s: What they took to train, in seconds; ``None`` where a run does not say.
    """

    recipe: str
    points: tuple[RatePoint, ...]
    failed: tuple[float, ...]
    chosen: float | None
    higher_is_better: bool
    runs: int
    train_s: float | None

    @property
    def grid(self) -> list[float]:
        """Every rate that was tried, the failed ones included."""
        return sorted({*(point.rate for point in self.points), *self.failed})

    @property
    def best(self) -> float:
        """The rate with the best mean score; of equal ones that with the lower loss, then the smaller one."""
        sign = -1 if self.higher_is_better else 1

        def rank(point: RatePoint) -> tuple[float, float, float]:
            return (sign * point.mean, float("inf") if point.loss is None else point.loss, point.rate)

        return min(self.points, key=rank).rate

    @property
    def marked(self) -> float:
        """The rate that figures and tables mark: that of the final runs, the best one where there are none."""
        return self.best if self.chosen is None else self.chosen

    @property
    def score(self) -> float | None:
        """Mean score at the marked rate, where that was tried."""
        return next((point.mean for point in self.points if point.rate == self.marked), None)

    @property
    def edge(self) -> str:
        """``smallest`` or ``largest`` where the marked rate lies at the end of the grid, else empty."""
        grid = self.grid
        if len(grid) < 2 or self.marked not in (grid[0], grid[-1]):
            return ""
        return "smallest" if self.marked == grid[0] else "largest"


@dataclass(frozen=True)
class RateFamily:
    """The curves of the recipes that share a task, a model and a budget.

    Attributes:
        group: What the rates were for.
        primary: Name of the score.
        curves: One per recipe.
        searched: Whether the runs were a search on a validation split; else they are the results themselves.
    """

    group: Group
    primary: str
    curves: tuple[RateCurve, ...]
    searched: bool

    @property
    def warnings(self) -> list[str]:
        """What a reader must know about the search, one sentence an entry."""
        if not self.searched:
            return []
        found = []
        for curve in self.curves:
            rate = formats.rate(curve.marked)
            if curve.edge:
                beyond = "smaller" if curve.edge == "smallest" else "larger"
                found.append(
                    f"{curve.recipe}: the chosen rate {rate} is the {curve.edge} that was tried; a {beyond} one may be "
                    "better."
                )
            if curve.chosen is not None and curve.chosen != curve.best:
                found.append(
                    f"{curve.recipe}: the final runs use {rate}, but {formats.rate(curve.best)} is the best on the "
                    "validation split."
                )
            if curve.chosen is None:
                found.append(f"{curve.recipe}: searched, but no final run has finished.")
            if curve.failed:
                told = formats.series([formats.rate(value) for value in curve.failed])
                found.append(f"{curve.recipe}: no run finished at {told}.")
        grids = {tuple(curve.grid) for curve in self.curves}
        if len(grids) > 1:
            found.append("The recipes were not searched on the same grid.")
        return found


@dataclass(frozen=True)
class Cost:
    """What the search cost.

    Attributes:
        runs: Search runs.
        train_s: Their training time in seconds; ``None`` where a run does not say.
        total_s: Training time of every finished run, the search included.
    """

    runs: int
    train_s: float | None
    total_s: float | None

    @property
    def sentence(self) -> str:
        """The cost in words; empty without a search."""
        if not self.runs:
            return ""
        text = f"The search took {formats.plural(self.runs, 'run')}"
        if self.train_s is None or not self.total_s:
            return f"{text}."
        share = percent_of(self.train_s, self.total_s)
        return f"{text} and {formats.seconds(self.train_s)} of training, {share} of all training in this report."


def percent_of(part: float | None, whole: float | None) -> str:
    """Write a share of the training time in whole percent."""
    if part is None or not whole:
        return formats.DASH
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent >= 1 or percent == 0 else "< 1 %"


def search_cost(runs: Iterable[RunRecord]) -> Cost:
    """Add up what the search for learning rates cost.

    Args:
        runs: Finished runs.

    Returns:
        The cost; no runs where nothing was searched.
    """
    listed = list(runs)
    _, searches = split_searches(listed)
    return Cost(len(searches), _training(searches), _training(listed))


def rate_families(runs: Runs, groups: Sequence[Group]) -> list[RateFamily]:
    """Collect the curves of score against learning rate.

    Args:
        runs: Finished runs.
        groups: What ``group_runs`` made of them.

    Returns:
        One entry per group that was searched, and one per group whose final runs have several rates.
    """
    finals, searches = split_searches(runs)
    found = []
    for group in groups:
        place = (group.kind, *group.place)
        ours = [run for run in finals if (run.kind, run.task, run.model, run.budget) == place]
        tried = [run for run in searches if final_place(run) == place]
        labels = _labels([*ours, *tried])
        if tried:
            found.append(_searched(group, tried, labels, runs.problems))
        curves = [
            curve
            for name in group.ordered
            if (curve := _on_test(group, name, [run for run in ours if labels[id(run)] == name])) is not None
        ]
        if curves:
            found.append(RateFamily(group, group.runs[0].primary, tuple(curves), searched=False))
    return found


def _labels(runs: Iterable[RunRecord]) -> dict[int, str]:
    """Name every run's recipe as the groups do, with the options that tell its designs apart."""
    by_recipe: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_recipe.setdefault(run.recipe, []).append(run)
    return {id(run): name for name, members in by_design(by_recipe).items() for run in members}


def _searched(
    group: Group, tried: Sequence[RunRecord], labels: Mapping[int, str], problems: Iterable[Problem]
) -> RateFamily:
    """Curves of one group's search, those of recipes without a final run last."""
    names = dict.fromkeys(labels[id(run)] for run in tried)
    lost = _failed_rates(group, problems)
    curves = []
    for name in [
        *(known for known in group.ordered if known in names),
        *(new for new in names if new not in group.recipes),
    ]:
        members = [run for run in tried if labels[id(run)] == name]
        shown = group.recipes.get(name)
        points = _points(members)
        done = {point.rate for point in points}
        failed = tuple(sorted(lost.get(members[0].recipe, set()) - done))
        chosen = shown[0].learning_rate if shown else None
        curves.append(
            RateCurve(name, points, failed, chosen, members[0].higher_is_better, len(members), _training(members))
        )
    return RateFamily(group, tried[0].primary, tuple(curves), searched=True)


def _on_test(group: Group, name: str, members: Sequence[RunRecord]) -> RateCurve | None:
    """The curve of final runs that differ in nothing but seed and rate, where there are several rates."""
    shown = group.recipes[name][0]
    same = [run for run in members if variant(run, _RATE) == variant(shown, _RATE) and run.learning_rate is not None]
    points = _points(same)
    if len(points) < 2:
        return None
    return RateCurve(name, points, (), shown.learning_rate, shown.higher_is_better, len(same), _training(same))


def _points(members: Iterable[RunRecord]) -> tuple[RatePoint, ...]:
    by_rate: dict[float, list[RunRecord]] = {}
    for run in members:
        if run.learning_rate is not None:
            by_rate.setdefault(run.learning_rate, []).append(run)
    points = []
    for rate, found in sorted(by_rate.items()):
        losses = [loss for run in found if (loss := finite(run.scores.get("loss"))) is not None]
        mean = fmean(losses) if len(losses) == len(found) else None
        points.append(RatePoint(rate, tuple(run.score for run in found), mean))
    return tuple(points)


def _failed_rates(group: Group, problems: Iterable[Problem]) -> dict[str, set[float]]:
    """Rates of search runs that were left out, by recipe: a diverged rate is part of the grid."""
    found: dict[str, set[float]] = {}
    for problem in problems:
        config = problem.config
        training, task = config.get("training"), config.get("task")
        if not problem.left_out or not isinstance(training, Mapping) or not isinstance(task, Mapping):
            continue
        own = (problem.task, str(config.get("model") or ""), str(config.get("budget") or ""))
        rate = finite(training.get("learning_rate"))
        if own == (f"{group.task} (validation)", group.model, group.budget) and rate is not None:
            found.setdefault(problem.recipe, set()).add(rate)
    return found


def _training(runs: Iterable[RunRecord]) -> float | None:
    """Add up training seconds; ``None`` unless every run says."""
    values: list[Any] = [finite(run.timings.get("train_s")) for run in runs]
    return None if not values or None in values else sum(values)


def gathered_warnings(families: Sequence[RateFamily]) -> list[str]:
    """Return the warnings of all searches, one that several of them share told once.

    Args:
        families: What ``rate_families`` returned.

    Returns:
        Sentences, with where they hold unless there is one search only.
    """
    found: dict[str, list[str]] = {}
    searched = [family for family in families if family.searched]
    for family in searched:
        for note in family.warnings:
            found.setdefault(note, []).append(family.group.label)
    if len(searched) == 1:
        return list(found)
    told = []
    for note, labels in found.items():
        many = f"{len(labels)} of {len(searched)} combinations of task, model and budget"
        told.append(f"{labels[0] if len(labels) == 1 else many}: {note}")
    return told
