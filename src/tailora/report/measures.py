"""What two recipes are compared by: the primary score where the predictions give it, else accuracy or loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailora.evaluation.entities import OUTSIDE, spans
from tailora.report.records import RunRecord, finite
from tailora.statistics import scores

if TYPE_CHECKING:
    import numpy as np

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A quantity that the predictions of a run give.

    Attributes:
        quantity: Its name.
        higher_is_better: Whether more of it is better.
        value: An example's number, of which the quantity is the mean; ``None`` where it is no mean.
        score: The quantity for weights ``[draws, examples]`` and the examples' rows, ``[draws]``; ``None`` for means.
    """

    quantity: str
    higher_is_better: bool
    value: Callable[[Row], float | None] | None = None
    score: Callable[[np.ndarray, Sequence[Row]], np.ndarray] | None = None


def choose_measure(runs: Sequence[RunRecord]) -> Measure:
    """Choose what to compare these runs by.

    Args:
        runs: Runs of one task.

    Returns:
        The first measure that gives every run's primary score from its predictions; where none does, accuracy if every
        example is right or wrong and the task is no language modelling, and the loss otherwise.
    """
    first = runs[0]
    for measure in _candidates(first.primary, first.higher_is_better, runs):
        if all(_gives(measure, run) for run in runs):
            return measure
    judged = first.kind != "causal-lm" and all(
        isinstance(row.get("correct"), bool) for run in runs for row in run.predictions
    )
    return Measure("accuracy", True, _correct) if judged else Measure("loss", False, _number("loss"))


def _candidates(primary: str, up: bool, runs: Sequence[RunRecord]) -> list[Measure]:
    """Every way in which a score of this name may come from predictions."""
    if primary == "loss":
        parts = (_tokens_times_loss, _number("tokens"))
        return [Measure(primary, up, _number("loss")), Measure(primary, up, score=_sums(*parts))]
    if primary == "matthews":
        names = _names(runs)
        return [Measure(primary, up, score=_classes(names, scores.matthews))]
    if primary in ("pearson", "spearman"):
        return [Measure(primary, up, score=_correlation(getattr(scores, primary)))]
    if primary == "entity_f1":
        return [Measure(primary, up, score=_sums(_entity_hits, _entity_sizes))]
    if primary == "f1":
        names = _names(runs)
        each = [None, *range(len(names))] if len(names) == 2 else [None]
        # Two classes have a positive one, which the names do not tell: the run's own score does.
        found = [Measure(primary, up, score=_classes(names, _f1_of(positive))) for positive in each]
        return [*found, Measure(primary, up, score=_sums(_tag_hits, _tag_sizes))]
    return [Measure(primary, up, value) for value in (_correct, _number("score"), _match)]


def _gives(measure: Measure, run: RunRecord) -> bool:
    """Tell whether a measure of all predictions is the primary score that the run has written down."""
    import numpy as np

    rows = run.predictions
    if not rows:
        return False
    try:
        if measure.value is not None:
            values = [measure.value(row) for row in rows]
            if any(value is None for value in values):
                return False
            found = math.fsum(value for value in values if value is not None) / len(rows)
        else:
            assert measure.score is not None
            found = float(measure.score(np.ones((1, len(rows))), rows)[0])
    except (TypeError, ValueError, KeyError, AttributeError):
        # Rows of another kind of task: this is not how the score came about.
        return False
    return math.isclose(found, run.score, rel_tol=1e-6, abs_tol=1e-6)


def _number(key: str) -> Callable[[Row], float | None]:
    return lambda row: finite(row.get(key))


def _correct(row: Row) -> float | None:
    value = row.get("correct")
    return float(value) if isinstance(value, bool) else None


def _match(row: Row) -> float | None:
    return float(row["label"] == row["prediction"]) if "label" in row and "prediction" in row else None


def _tokens_times_loss(row: Row) -> float | None:
    loss, tokens = finite(row.get("loss")), finite(row.get("tokens"))
    return None if loss is None or tokens is None else loss * tokens


def _tag_hits(row: Row) -> float:
    both = zip(_tags(row, "label"), _tags(row, "prediction"), strict=True)
    return 2.0 * sum(label == guess != OUTSIDE for label, guess in both)


def _tag_sizes(row: Row) -> float:
    return float(sum(tag != OUTSIDE for key in ("label", "prediction") for tag in _tags(row, key)))


def _entity_hits(row: Row) -> float:
    return 2.0 * len(set(spans(_tags(row, "label"))) & set(spans(_tags(row, "prediction"))))


def _entity_sizes(row: Row) -> float:
    return float(sum(len(set(spans(_tags(row, key)))) for key in ("label", "prediction")))


def _tags(row: Row, key: str) -> list[str]:
    if not isinstance(row[key], list):
        raise TypeError(f"{key} is no list of tags")
    return row[key]


def _sums(
    above: Callable[[Row], float | None], below: Callable[[Row], float | None]
) -> Callable[[np.ndarray, Sequence[Row]], np.ndarray]:
    import numpy as np

    def score(weights: np.ndarray, rows: Sequence[Row]) -> np.ndarray:
        # A None becomes NaN here, which is no run's score.
        parts, wholes = (np.array([part(row) for row in rows], dtype=float) for part in (above, below))
        return scores.ratio(weights, parts, wholes)

    return score


def _correlation(
    correlate: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
) -> Callable[[np.ndarray, Sequence[Row]], np.ndarray]:
    import numpy as np

    def score(weights: np.ndarray, rows: Sequence[Row]) -> np.ndarray:
        labels, guesses = (np.array([row[key] for row in rows], dtype=float) for key in ("label", "prediction"))
        return correlate(weights, labels, guesses)

    return score


def _names(runs: Sequence[RunRecord]) -> list[str]:
    found = {str(row.get(key)) for run in runs for row in run.predictions for key in ("label", "prediction")}
    return sorted(found)


def _classes(
    names: Sequence[str], of_counts: Callable[[np.ndarray], np.ndarray]
) -> Callable[[np.ndarray, Sequence[Row]], np.ndarray]:
    import numpy as np

    number = {name: place for place, name in enumerate(names)}

    def score(weights: np.ndarray, rows: Sequence[Row]) -> np.ndarray:
        if not isinstance(rows[0]["label"], str | int):
            raise TypeError("the labels are no classes")
        labels, guesses = (np.array([number[str(row[key])] for row in rows]) for key in ("label", "prediction"))
        return of_counts(scores.confusions(weights, labels, guesses, len(names)))

    return score


def _f1_of(positive: int | None) -> Callable[[np.ndarray], np.ndarray]:
    return lambda counts: scores.f1(counts, positive)
