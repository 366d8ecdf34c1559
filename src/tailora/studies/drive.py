"""The coordinator of a study: what is missing is executed, what failed is tried once more, and events are kept."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tailora.config import RunConfig
from tailora.locking import BusyError, run_lock
from tailora.run_folders import is_done, run_folder
from tailora.studies.attempts import LIMIT, failures, forget, note_failure
from tailora.studies.events import Events
from tailora.studies.expansion import Expansion, Run
from tailora.studies.messages import Ended, Message, Outcome, Started
from tailora.studies.search import Choice, choose
from tailora.studies.settings import Settings
from tailora.studies.state import relabel, status_of, write_study

_POLL = 1.0

Executor = Callable[[Sequence[RunConfig], Settings], Iterator[Message]]
"""Does every run once and yields messages; see ``studies.executors``."""


class Watcher(Protocol):
    """Who is told how a study advances."""

    def phase(self, name: str, runs: Sequence[Run], missing: int) -> None:
        """Take the runs of a phase, ``search`` or ``final``, and how many are to be done."""
        ...

    def message(self, run: Run, message: Message) -> None:
        """Take a message about one of them."""
        ...

    def say(self, sentence: str) -> None:
        """Take a sentence."""
        ...


@dataclass
class Result:
    """What came of a study.

    Attributes:
        done: Finished runs, those of the search included.
        new: How many of them this start did.
        failed: Runs that are given up, with the last error.
        choices: The learning rates that the search chose.
        final: The runs that are compared.
    """

    done: list[Run] = field(default_factory=list)
    new: int = 0
    failed: list[tuple[Run, str]] = field(default_factory=list)
    choices: tuple[Choice, ...] = ()
    final: tuple[Run, ...] = ()


def drive(
    expansion: Expansion,
    executor: Executor,
    settings: Settings,
    watcher: Watcher,
    *,
    retry_failed: bool = False,
) -> Result:
    """Do whatever is missing of a study.

    Args:
        expansion: The study, expanded.
        executor: Executes runs.
        settings: What the executor is told.
        watcher: Told how it advances.
        retry_failed: Try runs again that failed twice before.

    Returns:
        What is done and what failed.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; started again, the study continues.
    """
    result = Result()
    write_study(expansion)
    phase = _Phase(Events(expansion.study.folder), executor, settings, watcher, retry_failed, result)
    if expansion.search:
        phase.execute("search", expansion.search)
        result.choices = choose(expansion)
        for choice in result.choices:
            if choice.rate is None:
                watcher.say(f"{', '.join(choice.place[1:])}: no learning rate has all its search runs; see the errors")
            elif choice.warning:
                watcher.say(choice.warning)
    result.final = expansion.final({choice.place: choice.rate for choice in result.choices})
    write_study(expansion, result.choices, result.final)
    phase.execute("final", result.final)
    return result


@dataclass
class _Phase:
    """The runs of the search, or the final ones."""

    events: Events
    executor: Executor
    settings: Settings
    watcher: Watcher
    retry_failed: bool
    result: Result
    workers: dict[str, str] = field(default_factory=dict)
    noted: set[str] = field(default_factory=set)

    def execute(self, name: str, runs: Sequence[Run]) -> None:
        """Do the missing runs, and those that failed once more."""
        known = {run.config.hash: run for run in runs}
        pending: list[Run] = []
        self.noted = {row["hash"] for row in self.events.rows() if row["event"] == "done"}
        for run in known.values():
            folder, status = run_folder(run.config), status_of(run)
            if status == "done":
                self._done(run)
            elif status == "failed" and not self.retry_failed:
                self.result.failed.append((run, f"given up before: {failures(folder)[-1].get('error', '')}"))
            else:
                if status == "failed":
                    forget(folder)
                pending.append(run)
        self.watcher.phase(name, runs, len(pending))
        settings = replace(self.settings, watch=lambda message: self._message(known, message))
        while pending:
            pending = self._pass(pending, known, settings)

    def _pass(self, pending: list[Run], known: dict[str, Run], settings: Settings) -> list[Run]:
        """Do runs once; return those that are to be done again."""
        again: list[Run] = []
        busy: list[Run] = []
        told: set[str] = set()
        messages = self.executor([run.config for run in pending], settings)
        with contextlib.closing(messages) as stream:  # pyright: ignore[reportArgumentType]
            for message in stream:
                if isinstance(message, Ended):
                    run = known[message.outcome.hash]
                    told.add(run.config.hash)
                    if message.outcome.status == "busy":
                        busy.append(run)
                    elif not self._ended(run, message.outcome):
                        again.append(run)
                self._message(known, message)
        for run in pending:
            if run.config.hash not in told:
                lost = Outcome(run.config.hash, "failed", "its executor ended without saying how the run did")
                if not self._ended(run, lost):
                    again.append(run)
        if busy and not again:
            self._wait(busy)
        return again + busy

    def _message(self, known: dict[str, Run], message: Message) -> None:
        """Note and pass on what an executor tells."""
        if isinstance(message, Started):
            self.workers[message.hash] = message.worker
            self.events.add(message.hash, "started", message.worker)
        hash = message.outcome.hash if isinstance(message, Ended) else message.hash
        self.watcher.message(known[hash], message)

    def _ended(self, run: Run, outcome: Outcome) -> bool:
        """Note the end of an attempt; whether it is the last one."""
        if outcome.status == "done":
            self.result.new += outcome.worked
            self._done(run)
            return True
        count = note_failure(run_folder(run.config), outcome)
        worker = self.workers.get(run.config.hash, "")
        self.events.add(run.config.hash, "failed", worker, error=outcome.error)
        if outcome.retry and count < LIMIT:
            return False
        self.result.failed.append((run, outcome.error))
        return True

    def _done(self, run: Run) -> None:
        # Also a run found done: a study that was killed before it could say so, or another one, has done it.
        if run.config.hash not in self.noted:
            self.events.add(run.config.hash, "done", self.workers.get(run.config.hash, ""))
        forget(run_folder(run.config))
        relabel(run)
        self.result.done.append(run)

    def _wait(self, busy: Sequence[Run]) -> None:
        """Return when another process has finished one of the runs, or given it free."""
        self.watcher.say(f"another process is at work on {len(busy)} of the runs; waiting for it")
        while True:
            for run in busy:
                folder = run_folder(run.config)
                if is_done(run.config) or not folder.is_dir():
                    return
                with contextlib.suppress(BusyError), run_lock(folder):
                    return
            time.sleep(_POLL)


__all__ = ["Executor", "Result", "Watcher", "drive"]
