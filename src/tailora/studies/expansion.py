"""From a study to the configurations of its runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tailora.config import RunConfig, make_config
from tailora.errors import ConfigError, UserError, did_you_mean
from tailora.studies.definition import Entry, Study
from tailora.studies.layers import laid_over

AXES = ("model", "task", "recipe", "budget", "learning_rate", "seed")
"""What tells the runs of a study apart, as ``exclude`` names it."""

_PLURAL = {"model": "models", "task": "tasks", "recipe": "recipes", "budget": "budgets"}
_OWN = {"seed": "seeds", "output": "output", "label": "name in the entries of recipes"}

Place = tuple[str, str, str, str]
"""Labels of model, task, recipe and budget."""


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        config: Its configuration.
        place: Labels of its model, task, recipe and budget.
        role: ``search`` for a run that only helps to choose the learning rate.
    """

    config: RunConfig
    place: Place
    role: Literal["search", "final"] = "final"

    @property
    def labels(self) -> dict[str, str]:
        """The label on each axis."""
        rate = f"{self.config.training.learning_rate:g}"
        return dict(zip(AXES, (*self.place, rate, str(self.config.seed)), strict=True))

    @property
    def title(self) -> str:
        """What the run is, for people."""
        _, task, recipe, budget = self.place
        rate = f", rate {self.config.training.learning_rate:g}" if self.role == "search" else ""
        return f"{recipe}, {task}, {budget}, seed {self.config.seed}{rate}"


@dataclass(frozen=True)
class Cell:
    """All runs of one model, task, recipe and budget.

    Attributes:
        place: Their labels.
        values: The configuration without seed and learning rate.
        where: What it came from, for messages.
    """

    place: Place
    values: Mapping[str, Any]
    where: str

    def config(self, seed: int, rate: float | None = None, validation: float | None = None) -> RunConfig:
        """Return the configuration of one run.

        Args:
            seed: Its seed.
            rate: Its learning rate; the cell's own when left out.
            validation: Share of the training data to score on, instead of the evaluation data.

        Returns:
            The configuration.

        Raises:
            ConfigError: Something in it is wrong.
        """
        above: dict[str, Any] = {"seed": seed}
        if rate is not None:
            above["training"] = {"learning_rate": rate}
        if validation is not None:
            above["task"] = {"evaluate_on": "validation", "validation": validation}
        return make_config(laid_over(self.values, above), where=self.where)


@dataclass(frozen=True)
class Expansion:
    """What a study consists of.

    Attributes:
        study: The study.
        cells: Its cells: one per model, task, recipe and budget.
        search: The runs from which learning rates are chosen; empty without a search.
        notes: What may not be meant, a sentence each.
    """

    study: Study
    cells: tuple[Cell, ...]
    search: tuple[Run, ...] = ()
    notes: tuple[str, ...] = ()

    def final(self, chosen: Mapping[Place, float | None] | None = None) -> tuple[Run, ...]:
        """Return the runs that are compared.

        Args:
            chosen: Learning rate of each cell, where the study searches; cells with ``None`` have no runs.

        Returns:
            The runs, those of one model and task together, then by seed: what shares data runs one after another, and
            all recipes advance alike.
        """
        runs = []
        for cell in self.cells:
            rates: tuple[float | None, ...] = self.study.learning_rate.fixed or (None,)
            if self.study.learning_rate.search:
                found = (chosen or {}).get(cell.place)
                rates = () if found is None else (found,)
            for seed in self.study.seeds:
                runs += [Run(cell.config(seed, rate), cell.place) for rate in rates]
        return _ordered(run for run in runs if not _excluded(self.study, run))


def expand(study: Study) -> Expansion:
    """Work out every run of a study, and refuse what cannot be meant.

    Args:
        study: The study.

    Returns:
        Its cells and search runs.

    Raises:
        ConfigError: A configuration or a recipe is wrong, two runs are the same, or a label is unknown.
    """
    grid_cells = _grid(study)
    cells = (*grid_cells, *_further(study, {cell.place[2] for cell in grid_cells}))
    if not cells:
        raise ConfigError(f"study {study.name!r} has no runs: give recipes, tasks, models or budgets")
    notes = _check_labels(study, cells)
    _check_recipes(cells)
    cells = tuple(cell for cell in cells if not _excluded(study, cell.place))
    expansion = Expansion(study, cells, _search_runs(study, cells), notes)
    # Any rate of the grid shows whether two cells are the same run.
    grid = study.learning_rate.search
    final = expansion.final({cell.place: grid[0] for cell in cells} if grid else None)
    if not final:
        raise ConfigError(f"study {study.name!r} has no runs: 'exclude' leaves none; correct it")
    for runs in (final, expansion.search):
        _refuse_doubles(runs)
    return expansion


def _grid(study: Study) -> list[Cell]:
    """Cross the four axes; a missing axis is what the base says."""
    if study.runs and not (study.models or study.tasks or study.recipes or study.budgets):
        return []
    axes = [list(enumerate(getattr(study, _PLURAL[axis]) or ({},))) for axis in AXES[:4]]
    owners: dict[tuple[int, str], int] = {}
    cells = []
    for entries in itertools.product(*axes):
        cell = _cell(study, {axis: entry for axis, (_, entry) in zip(AXES[:4], entries, strict=True)})
        for axis, (number, _) in enumerate(entries):
            if owners.setdefault((axis, cell.place[axis]), number) != number:
                raise _twice(study, _PLURAL[AXES[axis]], cell.place[axis])
        cells.append(cell)
    return cells


def _further(study: Study, taken: set[str]) -> list[Cell]:
    """Return the cells of ``runs``, whose names must not be recipes of the grid."""
    cells = [_cell(study, {"recipe": entry}, further=True) for entry in study.runs]
    for cell in cells:
        if cell.place[2] in taken:
            raise _twice(study, "recipes and runs", cell.place[2])
        taken.add(cell.place[2])
    return cells


def _twice(study: Study, where: str, label: str) -> ConfigError:
    return ConfigError(f"study {study.name!r}: two entries of {where} are called {label!r}; give one of them a name")


def _cell(study: Study, parts: Mapping[str, Entry], *, further: bool = False) -> Cell:
    """Lay the parts over the base, each over those before it."""
    names: dict[str, str] = {}
    values = _checked(study, study.base, "base")
    for axis, entry in parts.items():
        name = entry.get("name")
        if name is not None and not (isinstance(name, str) and name and name.isprintable()):
            raise ConfigError(f"study {study.name!r}: {_PLURAL[axis]} has an entry with name={name!r}; give it a text")
        place = "runs" if further else _PLURAL[axis]
        above = {key: value for key, value in entry.items() if key != "name"}
        values = laid_over(values, _checked(study, above, place))
        if name is not None:
            names[axis] = name
        elif entry and (further or (axis != "task" and axis not in entry)):
            raise ConfigError(f"study {study.name!r}: an entry of {place} has no name ({_short(entry)}); give it one")
    if isinstance(values.get("task"), dict) and "task" in names:
        values = laid_over({"task": {}}, values)
        values["task"].setdefault("name", names["task"])
    if "recipe" in names and names["recipe"] != values.get("recipe", "lora"):
        values["label"] = names["recipe"]
    values["output"] = str(study.runs_folder)
    told = ", ".join(f"{axis} {name!r}" for axis, name in names.items())
    where = f"study {study.name!r}" + (f" ({told})" if told else "")
    config = make_config(values, where=where)
    labels = (
        names.get("model", config.model.rstrip("/").rpartition("/")[2]),
        config.task.name,
        names.get("recipe", config.recipe),
        names.get("budget", config.budget),
    )
    return Cell(labels, values, where)


def _checked(study: Study, values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Refuse what a study decides for all its runs."""
    for key, instead in _OWN.items():
        if key in values:
            raise ConfigError(
                f"study {study.name!r}: {place} has {key}={values[key]!r}, which the study gives every run itself; "
                f"use {instead} of the study"
            )
    return dict(values)


def _check_labels(study: Study, cells: Sequence[Cell]) -> tuple[str, ...]:
    """Refuse labels that cannot be meant; return a note on each rule of ``exclude`` that names nothing."""
    known: dict[str, set[str]] = {}
    for number, axis in enumerate(AXES[:4]):
        known[axis] = {cell.place[number] for cell in cells}
    rates = study.learning_rate.fixed or study.learning_rate.search
    known |= {"seed": {str(seed) for seed in study.seeds}, "learning_rate": {f"{rate:g}" for rate in rates}}
    if study.baseline is not None and study.baseline not in known["recipe"]:
        hint = did_you_mean(study.baseline, known["recipe"]) or ";"
        raise ConfigError(
            f"study {study.name!r}: baseline={study.baseline!r} is no recipe of it{hint} known: "
            f"{', '.join(sorted(known['recipe']))}; correct it"
        )
    notes = []
    for rule in study.exclude:
        for axis, label in rule.items():
            if axis not in AXES:
                hint = did_you_mean(axis, AXES) or f"; known: {', '.join(AXES)}"
                raise ConfigError(f"study {study.name!r}: exclude has the unknown axis {axis!r}{hint}")
            if _text(label) not in known[axis]:
                # No error: a smaller scale may lack what the full study leaves out.
                hint = did_you_mean(_text(label), known[axis])
                notes.append(f"exclude names {axis} {_text(label)!r}, which this study does not have{hint}")
    return tuple(notes)


def _check_recipes(cells: Iterable[Cell]) -> None:
    """Refuse a recipe that cannot be planned with before anything runs, not in the middle of the night."""
    from tailora.planning import chosen_recipe

    seen: list[tuple[str, Any]] = []
    for cell in cells:
        config = cell.config(0)
        asked = (config.recipe, config.allocation)
        if asked not in seen:
            seen.append(asked)
            try:
                chosen_recipe(*asked)
            except UserError as error:
                raise ConfigError(f"{cell.where}: {error}") from error


def _search_runs(study: Study, cells: Iterable[Cell]) -> tuple[Run, ...]:
    rates, runs = study.learning_rate, []
    for cell in cells if rates.search else ():
        task = cell.config(0).task
        if task.carves_validation:
            raise ConfigError(
                f"{cell.where}: learning_rate.search needs task.evaluation: without it the examples that choose the "
                "rate would be those that score the runs; name the data, or give the rate"
            )
        for seed in study.seeds[: rates.seeds]:
            runs += [Run(cell.config(seed, rate, rates.validation), cell.place, "search") for rate in rates.search]
    return _ordered(run for run in runs if not _excluded(study, run))


def _excluded(study: Study, what: Run | Place) -> bool:
    """Tell whether a rule leaves a run, or all runs of a place, out."""
    labels: dict[str, str] = what.labels if isinstance(what, Run) else dict(zip(AXES, what, strict=False))
    return any(
        all(axis in labels and labels[axis] == _text(label) for axis, label in rule.items())
        for rule in study.exclude
        if rule
    )


def _ordered(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Keep the axes' order, with the seed before recipe and budget."""
    listed = list(runs)
    blocks = {run.place[:2]: None for run in listed}
    first = {block: number for number, block in enumerate(blocks)}
    seeds = {seed: number for number, seed in enumerate(dict.fromkeys(run.config.seed for run in listed))}
    return tuple(sorted(listed, key=lambda run: (first[run.place[:2]], seeds[run.config.seed])))


def _refuse_doubles(runs: Iterable[Run]) -> None:
    seen: dict[str, Run] = {}
    for run in runs:
        other = seen.setdefault(run.config.hash, run)
        if other is not run:
            raise ConfigError(
                f"two rows of the study are one and the same run: {other.title!r} and {run.title!r}; remove one, or "
                "leave it out with exclude"
            )


def _text(label: str | int | float) -> str:
    return f"{label:g}" if isinstance(label, float) else str(label)


def _short(entry: Entry) -> str:
    return ascii(entry) if len(ascii(entry)) < 60 else f"{ascii(entry)[:57]}..."
