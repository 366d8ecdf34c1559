"""One process per run folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from tailora.errors import UserError

LOCK = ".lock"
"""Name of the lock file in a run's folder; it holds the pid, the host and the time, for the message."""

_POLL = 0.2
_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class BusyError(UserError):
    """Another process works on the same run folder."""


@contextlib.contextmanager
def run_lock(folder: Path, *, wait: float = 0.0, name: str = LOCK) -> Iterator[None]:
    """Hold a run's folder for this process alone.

    The kernel keeps the lock and drops it when the process ends, so what a killed process leaves behind is only a
    file, which the next one takes over; no pid has to be guessed alive or dead.  Threads of one process exclude each
    other as well.

    Args:
        folder: The run's folder; it must exist.
        wait: Seconds to wait for another process to finish.
        name: The lock file, where something else than a run is held.

    Yields:
        Nothing; the lock file is gone afterwards.

    Raises:
        BusyError: Another process still holds the folder after ``wait`` seconds.
        OSError: The lock file cannot be written.
    """
    path = folder / name
    deadline = time.monotonic() + wait
    while (handle := _try_lock(path)) is None:
        if time.monotonic() >= deadline:
            raise BusyError(
                f"run folder {str(folder)!r} is in use by {_holder(path)}; wait for it (--wait SECONDS), or stop that "
                "process"
            )
        time.sleep(min(_POLL, max(0.0, deadline - time.monotonic())))
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(owner).encode(), 0)
        yield
    finally:
        # Removed while still held: whoever waits on the old file notices that it is no longer the one at this path.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _try_lock(path: Path) -> int | None:
    """Return an open file that holds the lock, or ``None`` while somebody else does."""
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            os.close(handle)
            raise
        # Some network file systems have no locks; refusing every run there would help nobody.
        return handle
    try:
        same = os.fstat(handle).st_ino == os.stat(path).st_ino
    except FileNotFoundError:
        same = False
    if not same:  # its holder finished and removed it between our open and our lock
        os.close(handle)
        return None
    return handle


def _holder(path: Path) -> str:
    """Say who holds the lock."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
