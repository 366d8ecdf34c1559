"""One attempt at one run, wherever it is executed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tailora.adapter_folders import one_line
from tailora.config import RunConfig
from tailora.errors import UserError
from tailora.failures import explain
from tailora.locking import BusyError
from tailora.progress import Progress
from tailora.run_folders import is_done, run_folder
from tailora.studies.messages import Advanced, Ended, Message, Outcome, Started

if TYPE_CHECKING:
    from tailora.tasks.sharing import Shared

PULSE = 0.25
"""Seconds between two messages about the progress of one run."""


def attempt(config: RunConfig, *, shared: Shared | None = None, progress: Progress | None = None) -> Outcome:
    """Do a run, or what is left of it, once.

    Args:
        config: The run's configuration.
        shared: Base models, data and profiles that this process has already; without it they are loaded.
        progress: Called as ``progress(stage, done, total)``, first as ``("load", 0, 0)`` once the folder is held.

    Returns:
        How it ended; whatever the run raised is in it.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the run stopped with a checkpoint.
    """
    from tailora.runs import execute

    start, folder = time.perf_counter(), run_folder(config)
    worked = False

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal worked
        worked = True
        if progress:
            progress(stage, done, total)

    def outcome(status: str, error: str = "", retry: bool = True) -> Outcome:
        seconds = time.perf_counter() - start
        return Outcome(config.hash, status, error, seconds, str(folder), retry, worked)  # pyright: ignore[reportArgumentType]

    if is_done(config):
        return outcome("done")
    try:
        execute(config, shared=shared, progress=tell)
    except BusyError as error:
        return outcome("busy", str(error))
    except Exception as error:
        sentence = one_line(explain(error, folder) or error)
        return outcome("failed", sentence, retry=not isinstance(error, UserError))
    return outcome("done")


def perform(
    config: RunConfig, send: Callable[[Message], None], *, shared: Shared | None = None, worker: str = ""
) -> Outcome:
    """Do a run once and send every message about it.

    ``Started`` is sent once the run's folder is held and the run is not done: a run that another process has finished
    in the meantime ends without having started.

    Args:
        config: The run's configuration.
        send: Takes each message.
        shared: What runs of this process share.
        worker: Who works on it, for people.

    Returns:
        How it ended, which ``Ended`` has told as well.
    """
    begun, last = False, 0.0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal begun, last
        if not begun:
            begun = True
            send(Started(config.hash, worker))
        now = time.monotonic()
        if now - last >= PULSE or (total and done >= total):
            last = now
            send(Advanced(config.hash, stage, done, total))

    ended = attempt(config, shared=shared, progress=progress)
    send(Ended(ended))
    return ended
