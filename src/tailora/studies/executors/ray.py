"""Runs on a Ray cluster: one task a run, with its CPUs and GPUs, repeated elsewhere when a node dies.

Everything that counts goes through the folders on the shared path, as in one process; Ray only says which process does
which run.  A study that is killed and started again therefore continues like any other.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tailora.config import RunConfig, is_recipe_file
from tailora.run_folders import run_folder
from tailora.stopping import Interrupted, StopRequest
from tailora.studies.executors.ray_cluster import connected
from tailora.studies.executors.ray_task import Board, Order, work
from tailora.studies.messages import Ended, Message, Outcome, Started
from tailora.studies.settings import Settings

RETRIES = 3
"""How often a run is repeated whose process or node died."""

_POLL = 0.2
_GRACE = 30.0
# What decides how a run behaves, and is not a place on one machine.
_PASSED_ON = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def execute(jobs: Sequence[RunConfig], settings: Settings) -> Iterator[Message]:
    """Do every run once on a Ray cluster.

    Args:
        jobs: The runs; their data, models and output folder lie on a path that all nodes share.
        settings: The cluster's address, and what a run needs of a node.

    Yields:
        What happens, as it happens.  A run whose node died starts again and has one end.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
        Interrupted: Ctrl-C or SIGTERM; the runs stopped with checkpoints.
    """
    if not jobs:
        return
    with connected(settings) as ray, _marks(jobs) as marks:
        tasks = _Tasks(ray, settings)
        try:
            for job in jobs:
                tasks.submit(job, marks[job.output])
            yield from tasks.messages()
        except KeyboardInterrupt as error:
            raise (error if isinstance(error, Interrupted) else StopRequest().error()) from None
        finally:
            tasks.cancel()


class _Tasks:
    """The runs that are on their way."""

    def __init__(self, ray: Any, settings: Settings):
        self._ray = ray
        # Beside the driver the board outlives every node whose death the study outlives.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._board = ray.remote(Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
        self._work = ray.remote(work).options(
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            max_retries=RETRIES,
            runtime_env={"env_vars": _environment(settings)},
        )
        self._pending: dict[Any, tuple[RunConfig, Order]] = {}
        self._stopped: dict[str, int] = {}
        self._begun: set[str] = set()
        self._ended: set[str] = set()
        self._news = self._board.take.remote()

    def submit(self, job: RunConfig, mark: str) -> None:
        """Queue a run."""
        paths = _paths(job)
        order = Order(_absolute(job, paths), job.hash, tuple(paths.values()), mark)
        self._queue(job, order)

    def _queue(self, job: RunConfig, order: Order) -> None:
        self._pending[self._work.remote(order, self._board)] = job, order

    def messages(self) -> Iterator[Message]:
        """Yield what happens until every run has ended."""
        while self._pending:
            # Sleeping here and not in Ray, which turns any signal into a bare KeyboardInterrupt.
            time.sleep(_POLL)
            ready, _ = self._ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
            yield from self._progress()
            for reference in ready:
                yield from self._result(reference)

    def _progress(self) -> Iterator[Message]:
        """Yield what the board has; without it, or while it starts again, nothing."""
        if not self._ray.wait([self._news], timeout=0)[0]:
            return
        found: list[Message] = []
        with contextlib.suppress(self._ray.exceptions.RayError):
            found = self._ray.get(self._news)
        self._news = self._board.take.remote()
        for message in found:
            if not isinstance(message, Ended) and message.hash not in self._ended:
                self._begun.add(message.hash)
                yield message

    def _result(self, reference: Any) -> Iterator[Message]:
        job, order = self._pending.pop(reference)
        errors = self._ray.exceptions
        try:
            worker, outcome = self._ray.get(reference)
        except errors.TaskCancelledError:
            # Nobody here cancelled it: its node was told to leave, and the run has stopped with a checkpoint.
            self._stopped[job.hash] = self._stopped.get(job.hash, 0) + 1
            if self._stopped[job.hash] <= RETRIES:
                self._queue(job, order)
                return
            worker, outcome = "", _lost(job, "its node was stopped")
        except errors.RayTaskError as error:
            # The attempt catches what a run raises; what is left is a node that cannot do any, such as without Tailora.
            worker, outcome = "", _lost(job, f"the node could not begin: {_last_line(error)}")
        except errors.RayError as error:
            worker, outcome = "", _lost(job, _last_line(error))
        if outcome.worked and worker and job.hash not in self._begun:
            yield Started(job.hash, worker)
        self._ended.add(job.hash)
        yield Ended(outcome)

    def cancel(self) -> None:
        """Stop what still runs: first with a checkpoint, then for good."""
        if not self._pending:
            return
        left = list(self._pending)
        self._pending.clear()
        with contextlib.suppress(self._ray.exceptions.RayError, ConnectionError):
            for reference in left:
                self._ray.cancel(reference)
            try:
                _, left = self._ray.wait(left, num_returns=len(left), timeout=_GRACE)
            finally:  # also after a second Ctrl-C
                for reference in left:
                    self._ray.cancel(reference, force=True)


@contextlib.contextmanager
def _marks(jobs: Sequence[RunConfig]) -> Iterator[dict[str, str]]:
    """Put a file into each output folder, by which a node can tell that it sees this very folder."""
    marks: dict[str, str] = {}
    try:
        for output in {job.output for job in jobs}:
            folder = Path(output).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            mark = folder / f".study-{secrets.token_hex(8)}"
            mark.touch()
            marks[output] = str(mark)
        yield marks
    finally:
        for mark in marks.values():
            with contextlib.suppress(OSError):
                Path(mark).unlink()


def _paths(job: RunConfig) -> dict[tuple[str, ...], str]:
    """Return what the run reads from this machine's disk, by its key in the configuration."""
    named = {("model",): job.model, ("task", "train"): job.task.train}
    if job.task.evaluation is not None:
        named["task", "evaluation"] = job.task.evaluation
    if is_recipe_file(job.recipe):
        named["recipe",] = job.recipe
    # What is not there is the id of something on the hub.
    return {key: os.path.abspath(value) for key, value in named.items() if Path(value).exists()}


def _absolute(job: RunConfig, paths: dict[tuple[str, ...], str]) -> dict[str, Any]:
    """Return the configuration as a plain dict that means the same in another working folder."""
    values = job.to_dict()
    for key, path in paths.items():
        (values if len(key) == 1 else values[key[0]])[key[-1]] = path
    return values | {"output": str(Path(job.output).resolve())}


def _environment(settings: Settings) -> dict[str, str]:
    """Return the variables of a worker process; the thread counts must be there before numpy and torch are."""
    variables = {name: str(max(1, int(settings.cpus))) for name in _THREADS}
    variables |= {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    if not settings.gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


def _lost(job: RunConfig, reason: str) -> Outcome:
    sentence = f"Ray lost the run {job.hash[:12]!r}: {reason}"
    return Outcome(job.hash, "failed", sentence, folder=str(run_folder(job)), retry=True)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
