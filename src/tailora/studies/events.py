"""``events.jsonl``: what happened to the runs of a study, one line each, never rewritten."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = "events.jsonl"


class Events:
    """The events of a study's folder; several studies at once may append.

    Attributes:
        path: The file.
    """

    def __init__(self, folder: Path):
        """Name the file; nothing is made before the first event.

        Args:
            folder: The study's folder.
        """
        self.path = folder / FILE

    def add(self, hash: str, event: str, worker: str = "", **more: Any) -> bool:
        """Append an event; a run is ``done`` once, and never ``started`` after that.

        Args:
            hash: Hash of the run's configuration.
            event: ``started``, ``done`` or ``failed``.
            worker: Who worked on it.
            **more: Further keys, such as ``error``.

        Returns:
            Whether it was appended.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        row = {"time": now, "hash": hash, "event": event, "worker": worker, **more}
        with self._held() as handle:
            # Several studies may find the same run done; the lock makes one of them the first.
            if event != "failed" and any(r["hash"] == hash and r["event"] == "done" for r in self.rows()):
                return False
            size = os.fstat(handle).st_size
            # What a killed process left of a line must not swallow this one.
            start = b"\n" if size and os.pread(handle, 1, size - 1) != b"\n" else b""
            os.write(handle, start + json.dumps(row, ensure_ascii=False).encode() + b"\n")
        return True

    def rows(self) -> list[dict[str, Any]]:
        """Return all events in order; a line that a killed process left unfinished is no event."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        rows = []
        for line in lines:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("hash"), str) and isinstance(row.get("event"), str):
                    rows.append(row)
        return rows

    @contextlib.contextmanager
    def _held(self) -> Iterator[int]:
        """Open the file for this process alone; the kernel gives it free when the process ends."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # Some network file systems have no locks.
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            os.close(handle)
