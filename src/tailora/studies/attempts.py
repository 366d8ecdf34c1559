"""``attempts.json`` in a run's folder: the attempts at it that failed."""

from __future__ import annotations

import contextlib
import datetime
from pathlib import Path
from typing import Any

from tailora.artifacts import write_json
from tailora.errors import UserError
from tailora.run_folders import stored
from tailora.studies.messages import Outcome

FILE = "attempts.json"
LIMIT = 2
"""So many failed attempts are enough."""


def failures(folder: Path) -> list[dict[str, Any]]:
    """Return the failed attempts at a run.

    Args:
        folder: The run's folder.

    Returns:
        One mapping each, with ``time``, ``error`` and ``retry``, in order.
    """
    try:
        found = stored(folder / FILE) or {}
    except UserError:
        return []
    rows = found.get("failures")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def given_up(folder: Path) -> bool:
    """Tell whether a run has failed so often that it is not tried again unasked.

    What failed because of the input does not count: it fails at once, and tomorrow the input may be another.

    Args:
        folder: The run's folder.

    Returns:
        Whether it has.
    """
    return sum(bool(row.get("retry")) for row in failures(folder)) >= LIMIT


def note_failure(folder: Path, outcome: Outcome) -> int:
    """Add a failed attempt.

    Args:
        folder: The run's folder.
        outcome: How the attempt ended.

    Returns:
        How many have failed by now, those because of the input apart.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows = [*failures(folder), {"time": now, "error": outcome.error, "retry": outcome.retry}]
    write_json(folder / FILE, {"hash": outcome.hash, "failures": rows})
    return sum(bool(row.get("retry")) for row in rows)


def forget(folder: Path) -> None:
    """Remove the list: the run is done, or is to be tried afresh.

    Args:
        folder: The run's folder.
    """
    with contextlib.suppress(OSError):
        (folder / FILE).unlink()
