"""What a study has done, what is left of it, and what that will take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tailora.config import RunConfig
from tailora.config_files import DATA_SUFFIXES
from tailora.errors import TailoraError, UserError
from tailora.run_folders import run_folder, stored
from tailora.studies.expansion import Expansion, Place, Run
from tailora.studies.state import status_of

_SMALL = 64 * 2**20


@dataclass(frozen=True)
class Row:
    """The runs of one model, task, recipe and budget.

    Attributes:
        place: Their labels.
        role: ``search`` or ``final``.
        runs: How many.
        done: How many of them are finished.
        missing: How many are to be done.
        failed: How many failed so often that they are not tried again unasked.
        adapter_params: Adapter parameters at most; ``None`` where only a loaded model or a profile tells.
        steps: Training steps of one run at most; ``None`` where unknown.
        tokens: Training tokens of one run at most, padding included.
        seconds: What is missing of the row will take; ``None`` where no finished run tells.
    """

    place: Place
    role: str
    runs: int
    done: int
    missing: int
    failed: int
    adapter_params: int | None
    steps: int | None
    tokens: int | None
    seconds: float | None


@dataclass(frozen=True)
class Estimate:
    """A study before it starts.

    Attributes:
        rows: One per model, task, recipe, budget and role.
        seconds: What is missing will take one run after another; ``None`` where that is unknown.
        basis: One sentence: what the time is estimated from, or why it is unknown.
    """

    rows: tuple[Row, ...]
    seconds: float | None
    basis: str


def estimate(expansion: Expansion, final: Sequence[Run]) -> Estimate:
    """Count a study's runs and estimate what is left.

    Args:
        expansion: The study, expanded.
        final: Its final runs; where rates are still to be chosen, those of any rate.

    Returns:
        The estimate; nothing is loaded or written.
    """
    runs = [*expansion.search, *final]
    statuses = {run.config.hash: status_of(run) for run in runs}
    rows_of = _RowCounter()
    steps = {run.config.hash: rows_of.steps(run.config) for run in runs}
    measured: dict[tuple[str, str, int | None], list[float]] = {}
    for run in runs:
        if statuses[run.config.hash] == "done" and (seconds := _seconds(run)) is not None:
            measured.setdefault((*run.place[:2], steps[run.config.hash]), []).append(seconds)
    groups: dict[tuple[str, Place], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.role, run.place), []).append(run)
    rows = []
    for (role, place), members in groups.items():
        first = members[0].config
        told = [statuses[run.config.hash] for run in members]
        missing = [run for run in members if statuses[run.config.hash] == "missing"]
        found = measured.get((*place[:2], steps[first.hash]))
        seconds = fmean(found) * len(missing) if found else None if missing else 0.0
        count = steps[first.hash]
        tokens = None if count is None else count * _batch(first) * first.task.max_length
        counts = (len(members), told.count("done"), len(missing), told.count("failed"))
        rows.append(Row(place, role, *counts, rows_of.parameters(first), count, tokens, seconds))
    return Estimate(tuple(rows), *_total(rows, sum(map(len, measured.values()))))


def _total(rows: Sequence[Row], finished: int) -> tuple[float | None, str]:
    known = [row.seconds for row in rows if row.seconds is not None]
    unknown = sum(row.missing for row in rows if row.seconds is None)
    if not any(row.missing for row in rows):
        return 0.0, "nothing is missing"
    if not unknown:
        return sum(known), f"from the time of {finished} finished runs of the same model, task and steps"
    return None, (
        f"unknown: for {unknown} missing runs no run of the same model, task and steps has finished; it is told once "
        "one has"
    )


def _seconds(run: Run) -> float | None:
    """Return what a finished run took from start to end; ``None`` where it was cut off in between."""
    try:
        timings = stored(run_folder(run.config) / "timings.json") or {}
    except UserError:
        return None
    seconds = timings.get("total_s")
    return float(seconds) if isinstance(seconds, int | float) and not timings.get("resumed_from_step") else None


def _batch(config: RunConfig) -> int:
    return config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps


class _RowCounter:
    """Sizes that cost a look at a file, looked up once."""

    def __init__(self) -> None:
        self._rows: dict[str, int | None] = {}
        self._targets: dict[str, Any] = {}

    def steps(self, config: RunConfig) -> int | None:
        """Return the training steps of a run at most."""
        training, task = config.training, config.task
        if training.max_steps is not None:
            return training.max_steps
        if task.streaming:
            return None
        rows = [count for count in (self._count(config), task.train_examples) if count is not None]
        if not rows:
            return None
        return math.ceil(math.ceil(min(rows) / _batch(config)) * (training.num_train_epochs or 1.0))

    def _count(self, config: RunConfig) -> int | None:
        """Return the rows of a small local file; plain text has none, and hub data is not fetched to count it."""
        place = Path(config.task.train)
        key = str(place)
        if key not in self._rows:
            self._rows[key] = None
            usable = place.suffix.lower() in DATA_SUFFIXES - {".txt", ".npz"}
            if usable and place.is_file() and place.stat().st_size <= _SMALL and not config.task.packing:
                from tailora.data import read_table

                try:
                    self._rows[key] = len(read_table(key, header=config.task.header))
                except TailoraError:  # the run will say what is wrong with it
                    self._rows[key] = None
        return self._rows[key]

    def parameters(self, config: RunConfig) -> int | None:
        """Return the adapter parameters of a run at most, where its model lies on this machine."""
        from tailora.budget import Budget

        budget = Budget.parse(config.budget)
        if config.recipe == "explicit" or (budget.kind in ("rank", "share") and not Path(config.model).is_dir()):
            return None
        try:
            if budget.kind not in ("rank", "share"):
                return budget.params(())
            targets, size = self._model(config)
            from tailora.placement import select

            return budget.params(select(targets, config.placement), model_params=size)
        except (TailoraError, OSError, ValueError, RuntimeError, KeyError, ImportError, AttributeError):
            return None  # the run will say what is wrong with it

    def _model(self, config: RunConfig) -> tuple[Any, int]:
        """Return the targets and the size of a model, built without its weights."""
        if config.model not in self._targets:
            self._targets[config.model] = _empty_model(config)
        return self._targets[config.model]


def _empty_model(config: RunConfig) -> tuple[Any, int]:
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from tailora.packed import count_weights
    from tailora.targets import find_targets

    kind = AutoModelForCausalLM if config.task.kind in ("causal-lm", "multiple-choice") else AutoModel
    with torch.device("meta"):
        model = kind.from_config(AutoConfig.from_pretrained(config.model, revision=config.revision))
    return find_targets(model), count_weights(model)
