"""Rows of many float32 matrices that grow together: in memory first, in temporary files when they get large."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np


class RowFiles:
    """Append-only float32 matrices.

    Args:
        slots: How many matrices.
        spill_bytes: Above this many bytes in total, all rows go to one temporary file per matrix.

    The temporary folder is removed by ``close`` and when the object dies, also at the end of the interpreter.
    """

    def __init__(self, slots: int, spill_bytes: int) -> None:
        """Start empty."""
        self._held: list[list[np.ndarray]] = [[] for _ in range(slots)]
        self._rows = [0] * slots
        self._widths = [0] * slots
        self.limit = spill_bytes
        self._bytes = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def folder(self) -> Path | None:
        """Where the files are; ``None`` while rows are in memory."""
        return None if self._folder is None else Path(self._folder.name)

    def append(self, rows: Mapping[int, np.ndarray]) -> None:
        """Add rows to some matrices.

        Args:
            rows: Matrix number to float32 ``[m, h]``.
        """
        for slot, values in rows.items():
            self._held[slot].append(np.ascontiguousarray(values, dtype=np.float32))
            self._rows[slot] += len(values)
            self._widths[slot] = values.shape[1]
            self._bytes += values.shape[0] * values.shape[1] * 4
        if self._folder is not None or self._bytes > self.limit:
            self._spill()

    def copy(self, source: int, destination: int) -> None:
        """Give one matrix the rows of another.

        Args:
            source: Whose rows.
            destination: An empty matrix.
        """
        if self._rows[source]:
            self.append({destination: np.array(self.array(source))})

    def array(self, slot: int) -> np.ndarray:
        """Return a matrix.

        Args:
            slot: Its number.

        Returns:
            float32 ``[n, h]``, read-only.
        """
        shape = (self._rows[slot], self._widths[slot])
        if self.folder is not None and shape[0]:
            return np.memmap(self.folder / f"{slot}.f32", dtype=np.float32, mode="r", shape=shape)
        if len(self._held[slot]) > 1:
            self._held[slot] = [np.concatenate(self._held[slot])]
        if not self._held[slot]:
            return np.zeros(shape, dtype=np.float32)
        view = self._held[slot][0].view()
        view.flags.writeable = False
        return view

    def close(self) -> None:
        """Forget all rows and remove the files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
        self._held = [[] for _ in self._held]
        self._rows = [0] * len(self._rows)
        self._bytes = 0

    def _spill(self) -> None:
        """Write what is in memory to the ends of the files."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="tailora-states-")
        for slot, held in enumerate(self._held):
            if held:
                with (Path(self._folder.name) / f"{slot}.f32").open("ab") as file:
                    for values in held:
                        file.write(values.tobytes())
                held.clear()
