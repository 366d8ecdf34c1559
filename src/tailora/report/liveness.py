"""Whether a process is at work on a run, from its folder alone."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from tailora.locking import LOCK


def worker(folder: Path) -> str | None:
    """Say who works on a run's folder.

    A run holds a lock for as long as it lives, and the kernel drops it when the process ends, however it ends.  On
    this machine the process is looked for first, so that the lock of a living run is never touched.  Elsewhere the lock
    file alone must do: a machine that cannot be asked is believed.

    Args:
        folder: The run's folder.

    Returns:
        Such as ``process 4711 on atlas``, or ``None`` when nobody does.
    """
    path = folder / LOCK
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        pid, host = int(owner["pid"]), str(owner["host"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        # The file is made a moment before its content is written.
        return "another process" if _is_held(path) else None
    told = f"process {pid} on {host}"
    if host != socket.gethostname():
        return told
    # A process of that number may be another one by now; then only the lock knows.
    return told if _lives(pid) and _is_held(path) else None


def _lives(pid: int) -> bool:
    """Tell whether a process of this number exists."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _is_held(path: Path) -> bool:
    """Tell whether a process holds the lock; believed where the file cannot be opened or has no locks."""
    import fcntl

    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
