"""Which runs were a search for the learning rate: they choose, and are no result of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tailora.report.records import RunRecord
from tailora.report.variants import design

_MARK = " (validation)"

Place = tuple[str, str, str, str]


def on_validation(run: RunRecord) -> bool:
    """Tell whether a run was scored on a share of the training data instead of the test data."""
    task = run.config.get("task")
    return isinstance(task, Mapping) and task.get("evaluate_on") == "validation"


def final_place(run: RunRecord) -> Place:
    """Return kind, task, model and budget of the final runs that a run belongs to."""
    return (run.kind, run.task.removesuffix(_MARK), run.model, run.budget)


def split_searches(runs: Iterable[RunRecord]) -> tuple[list[RunRecord], list[RunRecord]]:
    """Tell the search for learning rates from the runs that it was made for.

    A run on a validation split belongs to a search where the task, model and budget also have final runs and several
    rates were tried on the validation split: by its own recipe, or by another one while its own has a final run.
    Validation runs that stand alone are results like any other.

    Args:
        runs: Finished runs.

    Returns:
        The final runs and the search runs, each in the given order.
    """
    listed = list(runs)
    finals = [run for run in listed if not on_validation(run)]
    tried: dict[Place, set[float]] = {}
    own: dict[tuple[Place, str, str], set[float]] = {}
    for run in listed:
        if on_validation(run) and run.learning_rate is not None:
            tried.setdefault(final_place(run), set()).add(run.learning_rate)
            own.setdefault(_cell(run), set()).add(run.learning_rate)
    places, cells = {final_place(run) for run in finals}, {_cell(run) for run in finals}

    def searches(run: RunRecord) -> bool:
        if not on_validation(run) or run.learning_rate is None or final_place(run) not in places:
            return False
        return len(own[_cell(run)]) > 1 or (_cell(run) in cells and len(tried[final_place(run)]) > 1)

    found = [run for run in listed if searches(run)]
    chosen = {id(run) for run in found}
    return [run for run in listed if id(run) not in chosen], found


def _cell(run: RunRecord) -> tuple[Place, str, str]:
    return (final_place(run), run.recipe, design(run))
