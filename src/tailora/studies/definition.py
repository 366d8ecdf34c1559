"""What a study file may say; reading one is in ``studies.files``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from tailora.config_training import NaturalFloat, NaturalInt, PositiveFloat, PositiveInt, Section, Text, number
from tailora.errors import ConfigError
from tailora.validation import first_problem

Entry = dict[str, Any]
"""One entry of an axis: a partial configuration with ``name``; a name alone was turned into one on reading."""


def _entries(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise ValueError("must be a list")
    for item in value:
        if not isinstance(item, dict):
            raise ValueError(f"holds {item!r:.40}, but entries are names or partial configurations")
        if not item:
            raise ValueError("holds an empty entry; remove it")
    return value


def _seeds(value: Any) -> Any:
    """Turn a number of seeds into the seeds."""
    if isinstance(value, bool) or not isinstance(value, int | list | tuple):
        raise ValueError("must be a number of seeds, or a list of them")
    if isinstance(value, int):
        if not 1 <= value <= 1000:
            raise ValueError("must be from 1 to 1000 where it is a number of seeds; write a list for one seed")
        return list(range(value))
    return value


def _rates(value: Any) -> Any:
    """Turn one rate into a list of one, and a search into its own form."""
    if value is None:
        return {}
    if isinstance(value, dict):
        if "search" not in value:
            raise ValueError("is a mapping without 'search'; write {search: [3e-4, 1e-3, 3e-3]}, a rate, or a list")
        return value
    return {"fixed": list(value) if isinstance(value, list | tuple) else [value]}


def _different(values: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    twice = next((value for place, value in enumerate(values) if value in values[:place]), None)
    if twice is not None:
        raise ValueError(f"holds {what} {twice!r} twice; keep one")
    return values


class Rates(Section):
    """The learning rates of a study.

    Attributes:
        fixed: These rates, each a run of its own.
        search: The grid from which every recipe gets the best on a validation split.
        seeds: How many seeds the search runs with; the first ones of the study's.
        validation: Share of the training data that the search validates on.
    """

    fixed: tuple[PositiveFloat, ...] = ()
    search: tuple[PositiveFloat, ...] = ()
    seeds: PositiveInt = 1
    validation: Annotated[float, BeforeValidator(number), Field(gt=0, lt=1, allow_inf_nan=False)] = 0.1

    @model_validator(mode="after")
    def _once(self) -> Rates:
        _different(self.fixed, "the rate")
        _different(self.search, "the rate")
        if len(self.search) == 1:
            raise ValueError("search has one rate, among which nothing can be chosen; write learning_rate: RATE")
        return self


class Resources(Section):
    """What one run needs, for Ray.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs; a fraction where runs share one.
    """

    cpus: NaturalFloat = 1.0
    gpus: NaturalFloat = 0.0


class Study(Section):
    """A set of runs that are compared.

    Attributes:
        name: Its name; the file's when left out.
        title: What it asks, one sentence.
        scale: Which of ``scales`` is used; ``full`` is the file as it stands.
        variables: Texts for ``${name}``.
        base: What all runs share, as in a configuration of ``tailora train``.
        tasks: Tasks, one run of everything each.
        models: Base models.
        recipes: Recipes.
        budgets: Budgets.
        seeds: Seeds.
        learning_rate: One rate, several, or a search.
        baseline: Label of the recipe that the others are compared with.
        include: Files whose keys hold where this one says nothing.
        exclude: Labels by axis; runs that match one of these are left out.
        runs: Further runs beside the grid, crossed with seeds and learning rates only.
        scales: Other sizes of the same study.
        resources: What one run needs.
        output: Folder of the runs, the report and the study's own files.
    """

    name: Text
    title: str = ""
    scale: Text = "full"
    variables: dict[str, Text] = Field(default_factory=dict)
    base: dict[str, Any] = Field(default_factory=dict)
    tasks: Annotated[tuple[Entry, ...], BeforeValidator(_entries)] = ()
    models: Annotated[tuple[Entry, ...], BeforeValidator(_entries)] = ()
    recipes: Annotated[tuple[Entry, ...], BeforeValidator(_entries)] = ()
    budgets: Annotated[tuple[Entry, ...], BeforeValidator(_entries)] = ()
    seeds: Annotated[tuple[NaturalInt, ...], BeforeValidator(_seeds), Field(min_length=1)] = (0,)
    learning_rate: Annotated[Rates, BeforeValidator(_rates)] = Field(default_factory=Rates)
    baseline: Text | None = None
    include: tuple[Text, ...] = ()
    exclude: tuple[dict[str, str | int | float], ...] = ()
    runs: Annotated[tuple[Entry, ...], BeforeValidator(_entries)] = ()
    scales: dict[str, dict[str, Any]] = Field(default_factory=dict)
    resources: Resources = Field(default_factory=Resources)
    output: Text

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        _different(self.seeds, "the seed")
        if self.learning_rate.seeds > len(self.seeds):
            raise ValueError(
                f"learning_rate.seeds={self.learning_rate.seeds} is more than the study's {len(self.seeds)} seeds; "
                "lower it"
            )
        return self

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.output)

    @property
    def runs_folder(self) -> Path:
        """The folder of its runs."""
        return self.folder / "runs"


def make_study(values: dict[str, Any], where: str) -> Study:
    """Check plain values.

    Args:
        values: What a study file says, variables and paths resolved.
        where: What it came from, for messages.

    Returns:
        The study.

    Raises:
        ConfigError: The first thing wrong, as one sentence.
    """
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_problem(error, Study, where)) from None
