"""Runs in worker processes on this machine, each with its own shared models and data."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO

from tailora.config import RunConfig
from tailora.errors import TailoraError
from tailora.run_folders import run_folder
from tailora.studies.messages import Ended, Message, Outcome
from tailora.studies.settings import Settings

PATIENCE = 60.0
"""Seconds that a worker has for its checkpoint once it was asked to stop."""

READY = "ready"
"""What a worker says once it can take runs."""

_STILLBORN = 3


class _Worker:
    """One worker process and the run it is at."""

    def __init__(self, name: str, log: Path | None, threads: int):
        """Start the process; it says when it is ready."""
        self.name, self.since, self.ready = name, 0.0, False
        self.job: RunConfig | None = None
        self.kind: tuple[str, str] | None = None
        ours, theirs = socket.socketpair()
        output: IO[bytes] | int = subprocess.DEVNULL
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = log.open("ab")
        try:
            # A session of its own: Ctrl-C in the terminal reaches the study alone, which then asks each worker once.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tailora.studies.executors.worker", str(theirs.fileno()), name],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={"OMP_NUM_THREADS": str(threads)} | os.environ,
            )
        finally:
            theirs.close()
            if not isinstance(output, int):
                output.close()
        self.pipe = Connection(ours.detach())

    def give(self, job: RunConfig) -> None:
        """Hand over a run; a worker that died in this moment is found out by its pipe."""
        self.job, self.kind, self.since = job, _kind(job), time.perf_counter()
        with contextlib.suppress(OSError):
            self.pipe.send(job)

    def death(self) -> Outcome | None:
        """Reap a dead process; how its run ended, where it had one."""
        self.pipe.close()
        status = self.process.wait()
        if self.job is None:
            return None
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        hint = "; memory may have run out" if status == -signal.SIGKILL else ""
        job, seconds = self.job, time.perf_counter() - self.since
        return Outcome(job.hash, "failed", f"{self.name} died ({how}){hint}", seconds, str(run_folder(job)))


def execute(jobs: Sequence[RunConfig], settings: Settings) -> Iterator[Message]:
    """Do every run once, ``settings.workers`` at a time.

    A worker that dies is a failed attempt of its run and is replaced.  When the iteration is closed or interrupted,
    the workers are asked to stop with a checkpoint, and none is left when this returns.

    Args:
        jobs: The runs.
        settings: How many workers, and where their output goes.

    Yields:
        Messages as they come.

    Raises:
        TailoraError: Workers die before they have begun.
    """
    waiting = list(jobs)
    workers: list[_Worker] = []
    stillborn = number = 0
    # Workers that each use every core slow one another down.
    threads = max(1, (os.cpu_count() or 1) // settings.workers)
    try:
        while waiting or any(worker.job for worker in workers):
            while len(workers) < min(settings.workers, len(waiting) + sum(bool(w.job) for w in workers)):
                number += 1
                log = settings.logs / f"worker-{number}.log" if settings.logs else None
                workers.append(_Worker(f"worker {number}", log, threads))
            for worker in workers:
                if worker.ready and worker.job is None and waiting:
                    worker.give(_next_for(worker, workers, waiting))
            for pipe in wait([worker.pipe for worker in workers]):
                worker = next(worker for worker in workers if worker.pipe is pipe)
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):
                    workers.remove(worker)
                    ended = worker.death()
                    stillborn = 0 if worker.ready else stillborn + 1
                    if stillborn >= _STILLBORN:
                        log = f"; see {str(settings.logs)!r}" if settings.logs else ""
                        raise TailoraError(f"{stillborn} workers died before they had begun{log}") from None
                    if ended is not None:
                        yield Ended(ended)
                    continue
                if message == READY:
                    worker.ready = True
                    continue
                if isinstance(message, Ended):
                    worker.job = None
                yield message
    finally:
        _stop(workers)


def _kind(job: RunConfig) -> tuple[str, str]:
    """Return what runs that share a model and data have in common."""
    return job.model, job.task.name + job.task.evaluate_on


def _next_for(worker: _Worker, workers: Sequence[_Worker], waiting: list[RunConfig]) -> RunConfig:
    """Take the run whose model and data the worker has already, else one whose model and data no other has."""
    others = {other.kind for other in workers if other is not worker}
    place = next((n for n, job in enumerate(waiting) if _kind(job) == worker.kind), None)
    if place is None:
        place = next((n for n, job in enumerate(waiting) if _kind(job) not in others), 0)
    return waiting.pop(place)


def _stop(workers: Sequence[_Worker]) -> None:
    """End every worker: idle ones at once, busy ones with a checkpoint; a second interrupt ends them all at once."""
    try:
        for worker in workers:
            if worker.job is None:
                worker.process.kill()
            else:
                worker.process.terminate()
        deadline = time.monotonic() + PATIENCE
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in workers:
            if worker.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    # Its session: data loaders are its children.
                    os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
            worker.pipe.close()
