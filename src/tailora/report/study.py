"""What a study expected, from its ``study.json``, and which of it is not there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailora.artifacts import read_json
from tailora.errors import UserError
from tailora.report import formats
from tailora.report.records import Runs, finite

FILE = "study.json"


@dataclass(frozen=True)
class Expected:
    """A run that belongs to a study.

    Attributes:
        hash: Hash of its configuration.
        recipe: The recipe's label.
        task: Name of the task.
        model: The model's label.
        budget: The budget's label.
        seed: Its seed, where known.
        rate: Its learning rate, where known.
        search: Whether it is part of the search for a learning rate.
        folder: Name of its folder, where known.
    """

    hash: str
    recipe: str = ""
    task: str = ""
    model: str = ""
    budget: str = ""
    seed: int | None = None
    rate: float | None = None
    search: bool = False
    folder: str = ""

    @property
    def label(self) -> str:
        """Its axes in words."""
        parts = [self.task, self.model, self.budget, self.recipe]
        return ", ".join(part for part in parts if part) or self.hash[:12]


@dataclass(frozen=True)
class Study:
    """A study as its coordinator wrote it down.

    Attributes:
        name: Its name.
        title: A sentence about it; may be empty.
        baseline: The recipe that the others are compared with; may be empty.
        expected: Every run that belongs to it.
    """

    name: str
    title: str = ""
    baseline: str = ""
    expected: tuple[Expected, ...] = ()


@dataclass(frozen=True)
class Missing:
    """Runs of one recipe that a study expects and no folder holds.

    Attributes:
        label: Task, model, budget and recipe.
        search: Whether they are part of the search for a learning rate.
        runs: How many.
        detail: Which seeds and learning rates.
    """

    label: str
    search: bool
    runs: int
    detail: str


def load_study(folder: str | Path) -> Study | None:
    """Read a study's own description of itself; a report does without one that cannot be read.

    Args:
        folder: The study's output folder.

    Returns:
        The study, or ``None`` where the folder holds none.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        data = read_json(path, FILE)
    except (UserError, RecursionError):
        return None
    if not isinstance(data, Mapping):
        return None
    return Study(
        name=_word(data.get("name")) or Path(folder).resolve().name,
        title=_word(data.get("title")),
        baseline=_word(data.get("baseline")),
        expected=tuple(_expected(data.get("runs"))),
    )


def missing_runs(study: Study | None, runs: Runs) -> list[Missing]:
    """List what a study expects and no folder holds, finished or not.

    Args:
        study: The study; nothing is missing without one.
        runs: What was found.

    Returns:
        One entry per task, model, budget, recipe and part of the study.
    """
    if study is None:
        return []
    known = {run.hash for run in runs} | {problem.hash for problem in runs.problems if problem.hash}
    # A run that was cut off has no status yet, and so no hash.
    begun = {problem.path.name for problem in runs.problems}
    found: dict[tuple[str, bool], list[Expected]] = {}
    for run in study.expected:
        if run.hash not in known and run.folder not in begun:
            found.setdefault((run.label, run.search), []).append(run)
    return [Missing(label, search, len(members), _detail(members)) for (label, search), members in found.items()]


def strangers(study: Study | None, runs: Runs) -> int:
    """Count finished runs that the study does not list: an earlier version of its file may have made them."""
    if study is None or not study.expected:
        return 0
    own = {run.hash for run in study.expected}
    return sum(run.hash not in own for run in runs)


def _expected(value: Any) -> Iterable[Expected]:
    """Read the list of runs; an entry without a hash is passed over."""
    for facts in value if isinstance(value, list) else []:
        if isinstance(facts, Mapping) and isinstance(facts.get("hash"), str):
            seed, rate = _number(facts.get("seed")), _number(facts.get("learning_rate"))
            yield Expected(
                hash=facts["hash"],
                recipe=_word(facts.get("recipe")),
                task=_word(facts.get("task")),
                model=_word(facts.get("model")),
                budget=_word(facts.get("budget")),
                seed=None if seed is None else int(seed),
                rate=rate,
                search=facts.get("role") == "search",
                folder=_word(facts.get("folder")).replace("\\", "/").rpartition("/")[2],
            )


def _number(value: Any) -> float | None:
    """Read a number, also from the text of an axis' label."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return finite(value)


def _detail(members: Iterable[Expected]) -> str:
    """Name seeds and, for a search, rates."""
    listed = list(members)
    seeds = sorted({run.seed for run in listed if run.seed is not None})
    rates = sorted({run.rate for run in listed if run.rate is not None})
    told = []
    if seeds:
        told.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    if rates:
        told.append(f"learning rate{'s' if len(rates) > 1 else ''} {', '.join(map(formats.rate, rates))}")
    return "; ".join(told)


def _word(value: Any) -> str:
    return " ".join(str(value).split()) if isinstance(value, str | int | float) else ""
