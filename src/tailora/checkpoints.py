"""What training leaves behind while it runs: checkpoints that are whole or passed over, and the learning curve."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tailora import processes
from tailora.artifacts import canonical_json, write_text


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to the end.

    ``trainer_state.json`` is the last file of a checkpoint, so a process killed while writing leaves one that is
    missing or cut off.

    Args:
        folder: The folder of ``checkpoint-<step>`` folders.

    Returns:
        The checkpoint, or ``None``.
    """
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            whole = state["global_step"] == int(path.name.rpartition("-")[2])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if whole and all((path / name).is_file() for name in ("adapter_model.safetensors", "optimizer.pt")):
            found.append((state["global_step"], path))
    return max(found)[1] if found else None


def steps_of(checkpoint: Path) -> int:
    """Return the steps of the training that a checkpoint belongs to; the Trainer would take one more after the last.

    Args:
        checkpoint: A whole checkpoint.

    Returns:
        Steps of the whole schedule.
    """
    return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["max_steps"])


def drop_poisoned(folder: Path) -> Path | None:
    """Remove the newest checkpoints while their weights are no finite numbers.

    An update can poison the weights one step before the loss shows it; going on from there could never succeed.

    Args:
        folder: The folder of checkpoints.

    Returns:
        The newest good checkpoint, or ``None``.
    """
    from safetensors.torch import load_file

    while checkpoint := last_checkpoint(folder):
        weights = load_file(checkpoint / "adapter_model.safetensors")
        if all(bool(tensor.isfinite().all()) for tensor in weights.values()):
            return checkpoint
        if not processes.is_main():
            return None
        shutil.rmtree(checkpoint)
    return None


class History:
    """Rows of the learning curve, rewritten whole so that a reader never sees half a row."""

    def __init__(self, path: Path, *, until: int) -> None:
        """Read the rows up to the step ``until``; none for a fresh start at step 0."""
        self.path = path
        # What came after the checkpoint happens again.
        self.rows = [row for row in _read_rows(path) if row["step"] <= until] if until else []

    def begin_with(self, path: Path) -> None:
        """Take over the rows of a training that this one goes on from."""
        self.rows = _read_rows(path)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row and write the file."""
        self.rows.append(row)
        if processes.is_main():
            write_rows(self.path, self.rows)


def write_rows(path: Path, rows: list[dict[str, Any]] | tuple[dict[str, Any], ...]) -> Path:
    """Write one JSON object per line, atomically.

    Args:
        path: Where.
        rows: The objects.

    Returns:
        The path.
    """
    return write_text(path, "".join(canonical_json(row) + "\n" for row in rows))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError, RecursionError):
        return []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int) and "split" in row]
