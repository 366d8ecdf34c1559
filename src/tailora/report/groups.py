"""Which runs are compared with which: one group per task, model and budget, one setting per recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol, TypeVar

from tailora.report.records import RunRecord
from tailora.report.searches import split_searches
from tailora.report.settings import by_design, one_setting, unequal_settings, unequal_sizes

DEFAULT_BASELINE = "lora"
# Folder names that tell nothing about the model inside.
_NO_NAMES = {"model", "models", "base", "checkpoint", "final", "weights", "hf"}


class Placed(Protocol):
    """Anything that belongs to one task, model and budget: a row, a pair."""

    @property
    def task(self) -> str:
        """Name of the task."""
        ...

    @property
    def model(self) -> str:
        """The model as configured."""
        ...

    @property
    def budget(self) -> str:
        """The budget as written."""
        ...


_P = TypeVar("_P", bound=Placed)


def by_place(entries: Iterable[_P]) -> dict[tuple[str, str, str], list[_P]]:
    """Sort entries by task, model and budget, in the order in which these first occur."""
    found: dict[tuple[str, str, str], list[_P]] = {}
    for entry in entries:
        found.setdefault((entry.task, entry.model, entry.budget), []).append(entry)
    return found


@dataclass(frozen=True)
class Group:
    """The recipes that share a task, a model and a budget.

    Attributes:
        kind: Kind of the task.
        task: Name of the task.
        model: The model as configured.
        budget: The budget as written.
        recipes: Recipe to its runs, one per seed, best mean score first.
        baseline: The recipe that the others are compared with.
        notes: What a reader must know about how the runs were chosen.
    """

    kind: str
    task: str
    model: str
    budget: str
    recipes: dict[str, tuple[RunRecord, ...]]
    baseline: str
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[str, str, str]:
        """Task, model and budget, as ``by_place`` sorts by them."""
        return (self.task, self.model, self.budget)

    @property
    def label(self) -> str:
        """Task, model and budget in words."""
        return place_label(*self.place)

    @property
    def ordered(self) -> list[str]:
        """Recipes with the baseline first, then best first."""
        return [self.baseline, *(name for name in self.recipes if name != self.baseline)]

    @property
    def runs(self) -> list[RunRecord]:
        """Every run of the group."""
        return [run for runs in self.recipes.values() for run in runs]


def place_label(task: str, model: str, budget: str) -> str:
    """Write a task, model and budget in words."""
    return f"{task}, {short_model(model)}, {budget or 'no budget'}"


def short_model(model: str) -> str:
    """Return the last telling part of a folder or hub id; the provenance shows the whole."""
    parts = [part for part in re.split(r"[\\/]", model) if part]
    if len(parts) > 1 and parts[-1].lower() in _NO_NAMES:
        return "/".join(parts[-2:])
    return parts[-1] if parts else model


def group_runs(runs: Iterable[RunRecord], baseline: str | None = None) -> list[Group]:
    """Sort runs into groups that may be compared.

    One recipe with two placements (or other options of its own) counts as two. Where it was run with several training
    settings, one of them is taken, never by the score that the tables show. Runs that searched for a learning rate on
    a validation split are left out: they are no results (``learning_rates``).

    Args:
        runs: Finished runs.
        baseline: Recipe to compare with; default ``lora`` where it was run, else the first name of the alphabet.

    Returns:
        Groups ordered by task, model and budget.
    """
    cells: dict[tuple[str, str, str, str], dict[str, list[RunRecord]]] = {}
    finals, _ = split_searches(runs)
    for run in finals:
        cells.setdefault((run.kind, run.task, run.model, run.budget), {}).setdefault(run.recipe, []).append(run)
    groups = []
    for key in sorted(cells, key=lambda key: (key[1], key[0], key[2], _natural(key[3]))):
        notes: list[str] = []
        designs = by_design(cells[key])
        chosen = {name: one_setting(name, members, notes) for name, members in sorted(designs.items())}
        notes += unequal_settings(chosen) + unequal_sizes(chosen)
        best_first = sorted(chosen, key=lambda name: (_badness(chosen[name]), name))
        base = _baseline(chosen, baseline)
        groups.append(Group(*key, {name: chosen[name] for name in best_first}, base, tuple(notes)))
    return groups


def recipe_order(groups: Sequence[Group]) -> list[str]:
    """Return every recipe once, baselines first, so that a recipe has one place and one colour in all figures."""
    names = dict.fromkeys(name for group in groups for name in group.ordered)
    bases = {group.baseline for group in groups}
    return sorted(names, key=lambda name: name not in bases)


def _baseline(chosen: dict[str, tuple[RunRecord, ...]], wanted: str | None) -> str:
    """Return the wanted recipe, else plain LoRA, else the first; of several designs of one recipe the first."""
    for name in (wanted, DEFAULT_BASELINE):
        found = [label for label, members in chosen.items() if name in (label, members[0].recipe)]
        if found:
            return min(found)
    return min(chosen)


def _badness(members: Sequence[RunRecord]) -> float:
    mean = fmean(run.score for run in members)
    return -mean if members[0].higher_is_better else mean


def _natural(text: str) -> list[tuple[int, float, str]]:
    """Sort key under which ``r=8`` comes before ``r=16``."""
    parts = re.findall(r"\d+(?:\.\d+)?|\D+", text)
    return [(0, float(part), "") if part[0].isdecimal() else (1, 0.0, part) for part in parts]
