"""What a Ray node does for a study: one run per task, with models shared inside a worker process."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailora._version import __version__
from tailora.config import RunConfig, make_config
from tailora.errors import TailoraError, UserError
from tailora.locking import BusyError, run_lock
from tailora.run_folders import is_done, run_folder
from tailora.studies.messages import Advanced, Ended, Message, Outcome, Started

if TYPE_CHECKING:
    from tailora.tasks.sharing import Shared

LOCK_WAIT = 30.0
"""Seconds to wait for the lock of a dead process; a file server may take that long to notice."""

MARK_WAIT = 30.0
"""Seconds to wait for the study's mark; a network file system may show a new file that late."""


@dataclass(frozen=True)
class Order:
    """One run as it is sent to a node.

    Attributes:
        values: The configuration as a plain dict, with absolute paths.
        hash: Its hash where the study was started.
        paths: What the run reads from disk.
        mark: A file in the study's output folder, which a node that shares the folder can see.
        version: Tailora's version where the study was started.
    """

    values: dict[str, Any]
    hash: str
    paths: tuple[str, ...]
    mark: str
    version: str = __version__


class Board:
    """Progress on its way from the workers to the study; an actor, whose loss costs progress and nothing else."""

    def __init__(self) -> None:
        """Start empty."""
        self._started: list[Started] = []
        self._advanced: dict[str, Advanced] = {}

    def put(self, message: Message) -> None:
        """Take a message from a worker.

        Args:
            message: Of the progress of one run only the last message counts.
        """
        if isinstance(message, Started):
            self._started.append(message)
        elif isinstance(message, Advanced):
            self._advanced[message.hash] = message

    def take(self) -> list[Message]:
        """Return what came since the last call, each run's start before its progress."""
        found: list[Message] = [*self._started, *self._advanced.values()]
        self._started, self._advanced = [], {}
        return found


def work(order: Order, board: Any) -> tuple[str, Outcome]:
    """Do one run in a worker process of a node.

    Args:
        order: The run.
        board: Handle of the ``Board``.

    Returns:
        The worker's name and how the run ended.

    Raises:
        Interrupted: The task was cancelled; the run stopped with a checkpoint.
    """
    from tailora.studies.attempt import perform

    worker, start = f"{socket.gethostname()}:{os.getpid()}", time.perf_counter()

    def send(message: Message) -> None:
        # The end travels as the task's result, which Ray does not lose.
        if not isinstance(message, Ended):
            board.put.remote(message)

    try:
        config = accept(order)
    except TailoraError as error:
        # Another node may be in order, so the run may be tried there.
        seconds = time.perf_counter() - start
        return worker, Outcome(order.hash, "failed", str(error), seconds, retry=True, worked=False)
    wait_for_lock(config)
    return worker, perform(config, send, shared=_shared(), worker=worker)


def accept(order: Order, *, wait: float = MARK_WAIT) -> RunConfig:
    """Check that this node sees what the study sees, and return the run's configuration.

    Args:
        order: The run.
        wait: Seconds to wait for the study's mark.

    Returns:
        The configuration.

    Raises:
        UserError: Tailora's version, the output folder or a file of the run is another one here.
    """
    node = socket.gethostname()
    if order.version != __version__:
        raise UserError(
            f"node {node!r} has tailora {__version__} and the study was started with {order.version}; install the same "
            "version on every node"
        )
    deadline = time.monotonic() + wait
    while not Path(order.mark).exists():
        if time.monotonic() >= deadline:
            raise UserError(
                f"node {node!r} does not see the study's folder {str(Path(order.mark).parent)!r}; put 'output' on a "
                "path that all nodes share"
            )
        time.sleep(0.5)
    for path in order.paths:
        if not Path(path).exists():
            raise UserError(f"node {node!r} has no {path!r}; put it on a path that all nodes share")
    config = make_config(order.values, where="the study's run")
    if config.hash != order.hash:
        raise UserError(
            f"run {order.hash[:12]!r} has the hash {config.hash[:12]!r} on node {node!r}, so its files are not the "
            f"same there: {', '.join(order.paths) or 'none'}; put them on a path that all nodes share"
        )
    return config


def wait_for_lock(config: RunConfig, *, wait: float = LOCK_WAIT) -> None:
    """Wait until the run's folder is free.

    A run that lost its node is repeated elsewhere at once, while the lock of the dead process may still be held.

    Args:
        config: The run.
        wait: Seconds after which the attempt itself may find the folder busy.
    """
    folder = run_folder(config)
    if not folder.is_dir() or is_done(config):
        return
    with contextlib.suppress(BusyError, OSError), run_lock(folder, wait=wait):
        pass


@functools.cache
def _shared() -> Shared:
    """Return what the runs of this worker process share; Ray gives the next run to the same process."""
    from tailora.tasks.sharing import Shared

    return Shared()
