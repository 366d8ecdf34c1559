"""What a report knows about one run folder, and about the folders it could not use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunRecord:
    """One finished run, as read from its folder.

    Attributes:
        path: The folder.
        status: Content of ``status.json``.
        config: The full configuration.
        plan: The plan, every candidate target listed.
        scores: Final scores on the test split.
        signals: Signal name to one number per target name.
        history: Logged steps in file order.
        predictions: One entry per test example.
        timings: Seconds per stage and the peak memory.
        counts: Parameters of adapter, head and base model.
        environment: Versions and platform.
    """

    path: Path
    status: dict[str, Any]
    config: dict[str, Any]
    plan: dict[str, Any]
    scores: dict[str, Any]
    signals: dict[str, dict[str, float]] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    predictions: tuple[dict[str, Any], ...] = ()
    timings: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        """Name of the recipe in tables: the label that the run was given, the recipe's own otherwise."""
        return (
            _label(self.config)
            or _recipe_name(self.config.get("recipe"))
            or _recipe_name(self.plan.get("recipe"))
            or "unnamed"
        )

    @property
    def citation(self) -> str:
        """Citation of the recipe; empty when it has none."""
        recipe = self.plan.get("recipe")
        return str(recipe.get("citation") or "") if isinstance(recipe, Mapping) else ""

    @property
    def budget(self) -> str:
        """The budget as the user wrote it."""
        return str(self.config.get("budget") or self.plan.get("budget") or "")

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(finite(self.config.get("seed")) or 0)

    @property
    def model(self) -> str:
        """The model as configured, a hub id or a folder."""
        return str(self.config.get("model") or "unknown model")

    @property
    def task(self) -> str:
        """Name of the task; a score on a share of the training data is marked, since it is another quantity."""
        return _task_label(self.config) or self.kind or "unnamed task"

    @property
    def kind(self) -> str:
        """Kind of the task, such as ``text-classification``."""
        return _task_text(self.config, "kind")

    @property
    def hash(self) -> str:
        """Hash of the full configuration."""
        return str(self.status.get("hash") or self.config.get("hash") or self.path.name)

    @property
    def learning_rate(self) -> float | None:
        """The learning rate, when the configuration names one."""
        training = self.config.get("training")
        return finite(training.get("learning_rate")) if isinstance(training, Mapping) else None

    @property
    def primary(self) -> str:
        """Name of the primary score."""
        return str(self.scores["primary"])

    @property
    def score(self) -> float:
        """Value of the primary score."""
        return float(self.scores[self.primary])

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger primary score is the better one."""
        return bool(self.scores.get("higher_is_better", True))

    @property
    def adapter_params(self) -> int | None:
        """Trainable adapter parameters, head apart."""
        value = finite(self.counts.get("adapter_params"))
        value = finite(self.plan.get("total_params")) if value is None else value
        return None if value is None else int(value)

    @property
    def base_params(self) -> int | None:
        """Parameters of the base model."""
        value = finite(self.counts.get("base_params"))
        value = finite(self.plan.get("model_params")) if value is None else value
        return None if value is None else int(value)


@dataclass(frozen=True)
class Problem:
    """Something a reader of the report must know about a folder.

    Attributes:
        path: The folder.
        reason: What is wrong, one clause.
        status: ``failed``, ``interrupted``, ``running``, ``unfinished`` or ``broken``; ``done`` when the run is kept.
        left_out: Whether the run is missing from tables and figures.
        hash: Hash of the configuration, where readable.
        config: Whatever could be read of the configuration.
    """

    path: Path
    reason: str
    status: str = "broken"
    left_out: bool = True
    hash: str = ""
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        """Name of the recipe in tables, empty when unknown."""
        return _label(self.config) or _recipe_name(self.config.get("recipe"))

    @property
    def task(self) -> str:
        """Name of the task, empty when unknown."""
        return _task_label(self.config)


class Runs(list[RunRecord]):
    """The finished runs, with what could not be used beside them.

    Attributes:
        root: The path that was searched.
        problems: One entry per folder that is left out, or kept with something missing.
    """

    def __init__(self, records: Iterable[RunRecord] = (), problems: Iterable[Problem] = (), root: Path | None = None):
        """Hold the records and the problems."""
        super().__init__(records)
        self.problems = list(problems)
        self.root = root


def finite(value: Any) -> float | None:
    """Return ``value`` as a float, or ``None`` when it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # An integer beyond the float range raises; as a number in a report it is as useless as an infinity.
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _label(config: Mapping[str, Any]) -> str:
    return str(config.get("label") or "")


def _recipe_name(value: Any) -> str:
    return str(value.get("name") or "") if isinstance(value, Mapping) else str(value or "")


def _task_label(config: Mapping[str, Any]) -> str:
    name = _task_text(config, "name")
    return f"{name} (validation)" if name and _task_text(config, "evaluate_on") == "validation" else name


def _task_text(config: Mapping[str, Any], key: str) -> str:
    task = config.get("task")
    if isinstance(task, Mapping):
        return str(task.get(key) or "")
    return str(task or "") if key == "name" else ""
