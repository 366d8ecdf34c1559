"""The sums of an unfinished pass on disk, so that a long profile goes on where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tailora.artifacts import content_hash, write_bytes
from tailora.errors import UserError
from tailora.fingerprints import DataFingerprint, model_fingerprint
from tailora.signals.base import Statistics, load_sums, sums_of
from tailora.signals.stability import Stability

if TYPE_CHECKING:
    from tailora.signals.passes import Pass

EVERY_SECONDS = 60.0
"""How often sums are written."""

_NOTED = "Stability/"


class Partial:
    """Writes the state of a pass now and then, and takes it up again.

    The file names the batches that it holds by their content, and the model and the options that it was measured with,
    so it cannot be continued with others.
    """

    def __init__(self, run: Pass, statistics: Statistics, stability: Stability, *, every: float | None = None) -> None:
        """Remember the place.

        Args:
            run: The pass, whose counts are kept with the sums; ``run.how.resume`` is the file, ``None`` keeps nothing.
            statistics: The statistics.
            stability: What was noted of the ranking.
            every: Seconds between two writings; ``EVERY_SECONDS`` when left out.
        """
        self.path, self.run, self.statistics, self.stability = run.how.resume, run, statistics, stability
        self.every = EVERY_SECONDS if every is None else every
        self.data, self.expected, self._before = DataFingerprint(), "", ""
        self._same: dict[str, str] = {}
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
                self._take_up(meta)
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            load_sums(self.statistics, held)
            self.stability.load({name.removeprefix(_NOTED): held[name] for name in held if name.startswith(_NOTED)})
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
        for name, value in self._measured().items():
            if meta.get(name) != value:
                raise ValueError(f"it was measured with another {name}")
        self.expected = meta["data"]
        self.run.examples, self.run.batches = int(meta["examples"]), int(meta["batches"])
        self.run.loss_sum, self.run.one_by_one = float(meta["loss_sum"]), meta["one_by_one"]
        self.run.loss_name = meta["loss_name"]
        self.run.skipped = [text for text in meta["skipped"].split("\n") if text]
        self.run.reached = {int(index) for index in meta["reached"].split()}

    def see(self, batch: Mapping[str, Any]) -> None:
        """Take note of a batch before it is taken or passed over."""
        if self.path is not None:
            self._before = self.data.hexdigest()
            self.data.update(batch)

    def check_data(self, *, ended: bool = False) -> None:
        """Refuse to go on with other data than the sums were made of.

        Args:
            ended: Whether there are no more batches, so that all of them were passed over.

        Raises:
            UserError: The batches that were passed over are not those of the earlier pass.
        """
        if self.expected and (self.data.hexdigest() if ended else self._before) != self.expected:
            raise UserError(
                f"the unfinished profile {str(self.path)!r} was measured on other batches; remove it to start anew"
            )

    def keep(self) -> None:
        """Write the sums if it is time."""
        if self.path is not None and time.monotonic() - self.written >= self.every:
            self.write()

    def write(self) -> None:
        """Write the sums; do nothing where no file is asked for or no batch was taken."""
        if self.path is None or not self.run.batches:
            return
        from safetensors.torch import save

        meta = {
            **self._measured(),
            "targets": self._targets(),
            "data": self.data.hexdigest(),
            "examples": str(self.run.examples),
            "batches": str(self.run.batches),
            "loss_sum": repr(self.run.loss_sum),
            "loss_name": self.run.loss_name,
            "one_by_one": self.run.one_by_one,
            "skipped": "\n".join(self.run.skipped),
            "reached": " ".join(map(str, sorted(self.run.reached))),
        }
        noted = {f"{_NOTED}{name}": tensor for name, tensor in self.stability.state().items()}
        write_bytes(self.path, save({**sums_of(self.statistics), **noted}, meta))
        self.written = time.monotonic()

    def remove(self) -> None:
        """Remove the file of a finished pass."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _measured(self) -> dict[str, str]:
        """Return, by name, what two sittings must have in common besides the data."""
        if not self._same:
            how = self.run.how
            loss = getattr(how.loss, "__qualname__", None) or str(how.loss)
            self._same = {
                "model": model_fingerprint(self.run.model),
                "loss": loss if callable(how.loss) else str(how.loss),
                **{name: str(getattr(how, name)) for name in ("labels", "mode", "seed", "on_nonfinite")},
                "option": content_hash({str(name): repr(value) for name, value in how.options.items()}),
            }
        return self._same

    def _targets(self) -> str:
        return " ".join(target.name for target in self.run.targets)
