"""How a study stands while it runs: counts, scores and the time left, kept from its messages."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from tailora.errors import UserError
from tailora.run_folders import run_folder, stored
from tailora.studies.expansion import Run
from tailora.studies.messages import Advanced, Ended, Message, Started
from tailora.studies.state import status_of


@dataclass
class Board:
    """The state of the phase at hand.

    Attributes:
        phase: ``search`` or ``final``.
        total: Runs of the phase.
        done: Finished ones.
        failed: Failed attempts since the start.
        active: What is being worked on: hash to run, worker, stage, steps done, steps in all.
        scores: (task, budget, recipe) to the primary scores of finished runs, and their name.
        seconds: What finished attempts took.
    """

    workers: int = 1
    phase: str = ""
    total: int = 0
    done: int = 0
    failed: int = 0
    active: dict[str, tuple[Run, str, str, int, int]] = field(default_factory=dict)
    scores: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    primary: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    _began: dict[str, float] = field(default_factory=dict)

    def enter(self, name: str, runs: Sequence[Run], missing: int) -> None:
        """Begin a phase.

        Args:
            name: ``search`` or ``final``.
            runs: Its runs.
            missing: How many are to be done.
        """
        self.phase, self.total, self.done = name, len(runs), 0
        self.active, self.scores = {}, {}
        for run in runs:
            if status_of(run) == "done":
                self._finished(run)
        self.missing = missing

    def take(self, run: Run, message: Message) -> None:
        """Take in a message.

        Args:
            run: The run it is about.
            message: The message.
        """
        hash = run.config.hash
        if isinstance(message, Started):
            self.active[hash] = (run, message.worker, "load", 0, 0)
            self._began[hash] = time.monotonic()
        elif isinstance(message, Advanced) and hash in self.active:
            self.active[hash] = (run, self.active[hash][1], message.stage, message.done, message.total)
        elif isinstance(message, Ended):
            self.active.pop(hash, None)
            if message.outcome.status == "done":
                self._finished(run)
                if message.outcome.worked:
                    self.seconds.append(message.outcome.seconds)
            elif message.outcome.status == "failed":
                self.failed += 1

    def left(self) -> float | None:
        """Return the seconds left of this phase, from the mean of its finished runs; ``None`` before the first."""
        if not self.seconds:
            return None
        mean = fmean(self.seconds)
        begun = sum(min(mean, time.monotonic() - self._began.get(hash, 0.0)) for hash in self.active)
        return max(0.0, mean * (self.total - self.done) - begun) / max(1, min(self.workers, self.total - self.done))

    def means(self) -> list[tuple[str, str, str, str, int, float, float]]:
        """Return task, budget, recipe, score name, runs, mean and standard deviation (nan for one run), sorted."""
        rows = []
        for (task, budget, recipe), values in self.scores.items():
            mean = fmean(values)
            spread = math.nan
            if len(values) > 1:
                spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
            rows.append((task, budget, recipe, self.primary.get(task, ""), len(values), mean, spread))
        return rows

    def _finished(self, run: Run) -> None:
        self.done += 1
        try:
            scores = stored(run_folder(run.config) / "scores.json") or {}
        except UserError:
            return
        primary = scores.get("primary")
        value = scores.get(primary) if isinstance(primary, str) else None
        if isinstance(value, int | float):
            _, task, recipe, budget = run.place
            self.primary[task] = str(primary)
            self.scores.setdefault((task, budget, recipe), []).append(float(value))
