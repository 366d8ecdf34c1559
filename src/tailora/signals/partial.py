"""The sums of an unfinished pass on disk, so that a long profile goes on where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailora.errors import UserError
from tailora.fingerprints import DataFingerprint
from tailora.signals.base import Statistics, load_sums, sums_of

if TYPE_CHECKING:
    from tailora.signals.passes import Pass

EVERY_SECONDS = 60.0
"""How often sums are written."""


class Partial:
    """Writes the state of a pass now and then, and takes it up again.

    The file names the batches that it holds by their content, so it cannot be continued with other data.
    """

    def __init__(self, path: Path | None, run: Pass, statistics: Statistics, *, every: float = EVERY_SECONDS) -> None:
        """Remember the place.

        Args:
            path: The file; ``None`` keeps nothing.
            run: The pass, whose counts are kept with the sums.
            statistics: The statistics.
            every: Seconds between two writings.
        """
        self.path, self.run, self.statistics, self.every = path, run, statistics, every
        self.data, self.expected, self._before = DataFingerprint(), "", ""
        self.written = time.monotonic()

    def restore(self) -> int:
        """Take up an earlier pass.

        Returns:
            How many batches are done.

        Raises:
            UserError: The file is damaged or of another profile.
        """
        if self.path is None or not self.path.is_file():
            return 0
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                meta = file.metadata() or {}
                load_sums(self.statistics, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            self._take_up(meta)
        except KeyError:
            raise UserError(
                f"the unfinished profile {str(self.path)!r} was measured with other signals; remove it to start anew"
            ) from None
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(
                f"the unfinished profile {str(self.path)!r} cannot be continued ({error}); remove it to start anew"
            ) from None
        return self.run.batches

    def _take_up(self, meta: Mapping[str, str]) -> None:
        if meta["targets"] != self._targets():
            raise ValueError("it measures other targets")
        self.expected = meta["data"]
        self.run.examples, self.run.batches = int(meta["examples"]), int(meta["batches"])
        self.run.loss_sum, self.run.one_by_one = float(meta["loss_sum"]), meta["one_by_one"]
        self.run.skipped = [text for text in meta["skipped"].split("\n") if text]
        self.run.reached = {int(index) for index in meta["reached"].split()}

    def see(self, batch: Mapping[str, Any]) -> None:
        """Take note of a batch before it is taken or passed over."""
        if self.path is not None:
            self._before = self.data.hexdigest()
            self.data.update(batch)

    def check_data(self) -> None:
        """Refuse to go on with other data than the sums were made of.

        Raises:
            UserError: The batches that were passed over are not those of the earlier pass.
        """
        if self.expected and self._before != self.expected:
            raise UserError(
                f"the unfinished profile {str(self.path)!r} was measured on other batches; remove it to start anew"
            )

    def keep(self) -> None:
        """Write the sums if it is time."""
        if self.path is not None and time.monotonic() - self.written >= self.every:
            self.write()

    def write(self) -> None:
        """Write the sums to a temporary name and rename it."""
        assert self.path is not None
        from safetensors.torch import save

        meta = {
            "targets": self._targets(),
            "data": self.data.hexdigest(),
            "examples": str(self.run.examples),
            "batches": str(self.run.batches),
            "loss_sum": repr(self.run.loss_sum),
            "one_by_one": self.run.one_by_one,
            "skipped": "\n".join(self.run.skipped),
            "reached": " ".join(map(str, sorted(self.run.reached))),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_bytes(save(sums_of(self.statistics), meta))
        temporary.replace(self.path)
        self.written = time.monotonic()

    def remove(self) -> None:
        """Remove the file of a finished pass."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _targets(self) -> str:
        return " ".join(target.name for target in self.run.targets)
