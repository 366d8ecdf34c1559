"""The learning rate of each recipe, chosen on the validation split from a grid that is the same for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tailora.errors import UserError
from tailora.run_folders import is_done, run_folder, stored
from tailora.studies.expansion import Expansion, Place, Run


@dataclass(frozen=True)
class Point:
    """One rate of a curve.

    Attributes:
        rate: The learning rate.
        score: Mean primary score on the validation split; ``None`` where a run is missing or failed.
        loss: Mean loss there.
        scores: The score of each seed.
        seconds: What its runs took, training and evaluation.
    """

    rate: float
    score: float | None
    loss: float | None
    scores: tuple[float, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Choice:
    """The learning rate of one model, task, recipe and budget.

    Attributes:
        place: Their labels.
        rate: The chosen rate; ``None`` where no rate has all its runs.
        primary: Name of the score.
        curve: Every rate of the grid, in rising order.
        edge: ``lowest`` or ``highest`` where the best rate is at that edge of the grid; else empty.
    """

    place: Place
    rate: float | None
    primary: str
    curve: tuple[Point, ...]
    edge: str = ""

    @property
    def warning(self) -> str:
        """A sentence where the grid may be too narrow; else empty."""
        _, task, recipe, budget = self.place
        if not self.edge or self.rate is None:
            return ""
        way = "smaller" if self.edge == "lowest" else "larger"
        return (
            f"{recipe}, {task}, {budget}: the best learning rate, {self.rate:g}, is the {self.edge} of the grid; a "
            f"{way} one may be better, so extend learning_rate.search"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        names = ("model", "task", "recipe", "budget")
        curve = [{**vars(point), "scores": list(point.scores)} for point in self.curve]
        chosen = {"rate": self.rate, "primary": self.primary, "edge": self.edge, "curve": curve}
        return dict(zip(names, self.place, strict=True)) | chosen


def choose(expansion: Expansion) -> tuple[Choice, ...]:
    """Choose each cell's rate from the finished search runs.

    The best mean primary score over the search's seeds wins; ties go to the lower loss, then to the smaller rate.  A
    rate of which a run is missing or failed, for example because it diverged, is not chosen.

    Args:
        expansion: The study, expanded.

    Returns:
        One choice per cell; empty for a study without a search.
    """
    by_place: dict[Place, list[Run]] = {}
    for run in expansion.search:
        by_place.setdefault(run.place, []).append(run)
    return tuple(_choose(place, runs) for place, runs in by_place.items())


def _choose(place: Place, runs: Sequence[Run]) -> Choice:
    rates = sorted({run.config.training.learning_rate for run in runs})
    read = {rate: [_scores(run) for run in runs if run.config.training.learning_rate == rate] for rate in rates}
    known = [scores for found in read.values() for scores in found if scores]
    primary = str(known[0]["primary"]) if known else ""
    higher = bool(known[0].get("higher_is_better", True)) if known else True
    curve = tuple(_point(rate, read[rate], primary) for rate in rates)
    usable = [point for point in curve if point.score is not None]

    def rank(point: Point) -> tuple[float, float, float]:
        assert point.score is not None
        return -point.score if higher else point.score, float("inf") if point.loss is None else point.loss, point.rate

    best = min(usable, key=rank) if usable else None
    edge = ""
    if best is not None:
        edge = "lowest" if best.rate == rates[0] else "highest" if best.rate == rates[-1] else ""
    return Choice(place, best.rate if best else None, primary, curve, edge)


def _point(rate: float, found: Sequence[dict[str, Any]], primary: str) -> Point:
    if not found or not all(found):
        return Point(rate, None, None)
    scores = tuple(float(one[primary]) for one in found)
    losses = [float(one["loss"]) for one in found if isinstance(one.get("loss"), int | float)]
    seconds = sum(float(one["seconds"]) for one in found)
    return Point(rate, fmean(scores), fmean(losses) if losses else None, scores, round(seconds, 3))


def _scores(run: Run) -> dict[str, Any]:
    """Return the final scores of a finished run and its seconds; empty where there are none."""
    folder = run_folder(run.config)
    try:
        scores, timings = stored(folder / "scores.json"), stored(folder / "timings.json") or {}
    except UserError:
        return {}
    if not is_done(run.config) or not scores or not isinstance(scores.get(str(scores.get("primary"))), int | float):
        return {}
    spent = [timings.get(name) for name in ("train_s", "evaluate_s")]
    return scores | {"seconds": sum(value for value in spent if isinstance(value, int | float))}
