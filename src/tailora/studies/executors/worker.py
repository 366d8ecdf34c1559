"""A worker process of a study: takes runs from a pipe until it closes.

Run as ``python -m tailora.studies.executors.worker FD NAME`` by ``executors.workers``; no command for people.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection

from tailora.config import RunConfig
from tailora.studies.attempt import perform
from tailora.studies.executors.workers import PATIENCE, READY
from tailora.surroundings import transformers_hushed
from tailora.tasks.sharing import Shared


def main(handle: int, name: str) -> int:
    """Do runs until the study has no more, or is gone.

    Args:
        handle: File descriptor of the pipe to the study.
        name: This worker's name.

    Returns:
        The exit status.
    """
    pipe = Connection(handle)
    jobs: queue.SimpleQueue[RunConfig] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, jobs), daemon=True).start()
    shared = Shared()

    def send(message: object) -> None:
        # Where the study is gone, the listener stops this process; the run must not fail for it.
        with contextlib.suppress(OSError):
            pipe.send(message)

    send(READY)
    try:
        with transformers_hushed():
            while True:
                perform(jobs.get(), send, shared=shared, worker=name)
    except KeyboardInterrupt as stopped:
        return getattr(stopped, "exit_code", 130)


def _listen(pipe: Connection, jobs: queue.SimpleQueue[RunConfig]) -> None:
    """Take in runs; when the study is gone, however it ended, stop with a checkpoint and leave nothing behind."""
    try:
        while True:
            jobs.put(pipe.recv())
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
