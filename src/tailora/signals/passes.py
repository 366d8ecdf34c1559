"""Forward passes over batches: whole where every layer keeps a row an example, one example at a time elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tailora.errors import ProfileError
from tailora.signals.base import Statistic
from tailora.signals.batching import count_examples
from tailora.signals.calling import for_inputs
from tailora.signals.capture import Call, InputsModified, Recorder, is_batched, observe
from tailora.signals.examples import digests, example_of, for_model, halves_of, halves_together, real_positions
from tailora.signals.hidden_states import TIME_FIRST, BlockStates
from tailora.signals.losses import Loss
from tailora.signals.observations import Observation
from tailora.signals.quiet import without_autocast
from tailora.signals.statistics.mean_gradient import MeanGradient
from tailora.targets import Target

if TYPE_CHECKING:
    from tailora.signals.collect import Collecting


class Pass:
    """Runs the model batch by batch and feeds statistics of its layers' inputs.

    Everything the first batch of several examples leaves is held, looked at, and only then counted.  Afterwards each
    layer's input is counted as it comes.

    Attributes:
        gradients: Whether a backward pass is made; see ``GradientPass``.
        examples: Examples that counted.
        batches: Batches taken.
        loss_sum: Sum of the examples' losses.
        loss_name: Name of the loss; empty where none is taken.
        one_by_one: Why examples are taken one at a time; empty while they are not.
        skipped: Examples that were left out.
        reached: Targets that the loss reached.
        states: Collects hidden states; ``None`` where no signal asks for them.
    """

    gradients = False

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        statistics: Sequence[Statistic],
        how: Collecting,
        states: BlockStates | None = None,
    ) -> None:
        """Look at the targets; no hook is registered yet."""
        self.model, self.targets, self.statistics, self.how = model, targets, statistics, how
        self.states = states
        self.recorder = Recorder(model, targets, gradients=self.gradients)
        self.direct: dict[int, nn.Parameter] = {}
        self.loss_name = ""
        self.loss_function: Loss | None = None
        self.examples, self.batches = 0, 0
        self.loss_sum: float = 0.0
        self.one_by_one = ""
        self.skipped: list[str] = []
        self.reached: set[int] = set()
        self.proved = False
        self._places: list[int] = []
        self._known: tuple[dict[str, Any], list[int]] | None = None
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if kind in TIME_FIRST and not self.gradients:
            # With as many positions as examples the shapes look right, and no gradient is there to tell.
            self.one_by_one = f"layers of {kind} models have time before examples"

    def start(self) -> None:
        """Register the hooks."""
        self.recorder.start()
        if self.states is not None:
            self.states.start()

    def stop(self) -> None:
        """Remove the hooks."""
        self.recorder.stop()
        if self.states is not None:
            self.states.stop()

    def take(self, batch: dict[str, Any]) -> None:
        """Take one batch, in one piece or one example at a time."""
        size = count_examples(for_model(batch))
        before, given = self.examples, batch
        self._places = []
        if not callable(self.how.loss) and self.how.mode == "eval":
            batch, self._places, numbers = halves_together(batch, size)
            self._known = (batch, numbers)
        try:
            whole = (size == 1 or not self.one_by_one) and self._whole(batch, size)
            if not whole:
                self._rows(batch, size)
        except InputsModified:
            if self.recorder.clone or self.proved:
                raise ProfileError(
                    "a model layer changes its input in place in a way that cannot be followed; profile a float32 copy "
                    "without in-place operations"
                ) from None
            self.recorder.clone = True
            self.take(given)
            return
        finally:
            self.recorder.clear()
            self._known = None
        for statistic in self.statistics:
            statistic.end_batch(self.examples - before)
        self.batches += 1

    def _whole(self, batch: dict[str, Any], size: int) -> bool:
        """Take a whole batch; return false, with the reason kept, where rows are not examples."""
        self.recorder.clear()
        numbers = self._numbers(batch, size, size)

        def sink(index: int, calls: list[Call]) -> None:
            seen = observe(calls, size, gradients=False)
            if seen is not None:
                self._describe(batch, index, seen, numbers)
                self._update(index, seen)

        if self.proved and size > 1:
            # Counted while a layer's input is still in the processor's cache, and let go: 5 to 10 % of a forward pass.
            self._forward(batch, lambda index, calls: sink(index, self._as_before(index, calls, size)))
        else:
            self._forward(batch)
            for target, calls in zip(self.targets, self.recorder.calls, strict=True):
                if size > 1 and not is_batched(calls, size):
                    self.one_by_one = (
                        f"the input of {target.name} is {list(calls[0].inputs.shape)} in a batch of {size} examples"
                    )
                    return False
            for index, calls in enumerate(self.recorder.calls):
                for call in calls:
                    sink(index, [call])
        self.proved = self.proved or size > 1
        self.examples += size
        self._commit(numbers)
        self._keep_states(batch, None)
        return True

    def _rows(self, batch: dict[str, Any], size: int) -> None:
        """Take a batch one example at a time: exact whatever the model does with its batch dimension."""
        for place in range(size):
            self._whole(example_of(batch, place, 1), 1)

    def _forward(self, batch: dict[str, Any], sink: Callable[[int, list[Call]], None] | None = None) -> None:
        """Run the model for its layers' inputs alone."""
        self.recorder.sink = sink
        try:
            self.model(**for_inputs(self.model, self.targets, batch))
        finally:
            self.recorder.sink = None

    def _as_before(self, index: int, calls: list[Call], size: int) -> list[Call]:
        """Return the calls, whose rows must be examples now that this was found to be so."""
        if not is_batched(calls, size):
            raise ProfileError(
                f"the input of {self.targets[index].name} is {list(calls[0].inputs.shape)} in a batch of {size} "
                "examples, unlike in the batches before; give batches of equal form"
            )
        return calls

    def _describe(self, batch: dict[str, Any], index: int, seen: Observation, numbers: list[int]) -> None:
        """Say which half each example belongs to and which positions are padding, call by call."""
        seen.halves = halves_of(numbers[: len(seen)])
        if seen.inputs is None:
            return
        examples, device = len(seen), seen.inputs.device
        parts = [real_positions(batch, self.targets[index], examples, length) for length in seen.lengths]
        if any(part is not None for part in parts):
            whole = torch.ones(examples, max(seen.lengths), dtype=torch.bool, device=device)
            masks = zip(parts, seen.lengths, strict=True)
            found = [whole[:, :length] if part is None else part.to(device) for part, length in masks]
            seen.real = found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def _keep_states(self, batch: Mapping[str, Any], rows: Tensor | None) -> None:
        if self.states is not None:
            self.states.commit(for_model(batch), rows)

    def _looking_away(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.states is None else self.states.paused()

    def _numbers(self, batch: dict[str, Any], size: int, examples: int) -> list[int]:
        """Return the examples' numbers; those of the batch at hand were taken once."""
        if self._known is not None and self._known[0] is batch and examples == size:
            return self._known[1]
        return digests(batch, size, examples)

    def _place(self, row: int) -> int:
        """Return where a row was in the batch as it was given."""
        return self._places[row] if row < len(self._places) else row

    def _commit(self, numbers: list[int]) -> None:
        """Tell statistics that divide by the examples of a half how many there were."""
        for statistic in self.statistics:
            if isinstance(statistic, MeanGradient):
                statistic.count(halves_of(numbers))

    def _update(self, index: int, seen: Observation) -> None:
        if seen.has_gradients:
            self.reached.add(index)
        with without_autocast(seen.device):
            for statistic in self.statistics:
                if seen.has_gradients or statistic.source == "inputs":
                    statistic.update(index, seen)
