"""Forward and backward passes over batches: whole where that is exact, one example at a time elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tailora.errors import ProfileError, UserError
from tailora.signals.agreement import draws, first_difference, squared_norm
from tailora.signals.base import Statistic
from tailora.signals.batching import count_examples
from tailora.signals.calling import for_inputs, needs_labels
from tailora.signals.capture import (
    Call,
    InputsModified,
    Recorder,
    as_matrices,
    direct_parameters,
    is_batched,
    observe,
)
from tailora.signals.examples import digests, example_of, for_model, halves_of, halves_together, real_positions
from tailora.signals.hidden_states import BlockStates
from tailora.signals.losses import Loss, choose_loss, counted_examples
from tailora.signals.model_labels import model_labels
from tailora.signals.observations import Observation
from tailora.signals.quiet import without_autocast
from tailora.signals.statistics.mean_gradient import MeanGradient
from tailora.targets import Target

if TYPE_CHECKING:
    from tailora.signals.collect import Collecting

Seen = list[Observation | None]
"""Per target, what was seen of some examples; ``None`` where the loss does not reach it."""


class Pass:
    """Runs the model batch by batch and feeds exact per-example statistics.

    Until one batch of several examples was found to be exact, everything a batch leaves is held, looked at, and only
    then counted.  Afterwards each target is counted as soon as the backward pass has gone through it.

    Attributes:
        gradients: Whether a backward pass is needed.
        examples: Examples that counted.
        batches: Batches taken.
        loss_sum: Sum of the examples' losses.
        loss_name: Name of the loss.
        one_by_one: Why examples are taken one at a time; empty while they are not.
        skipped: Examples that were left out.
        reached: Targets that the loss reached.
        states: Collects hidden states; ``None`` where no signal asks for them.
    """

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
        self.gradients = any(statistic.source == "gradients" for statistic in statistics)
        self.recorder = Recorder(model, targets, gradients=self.gradients)
        self.direct = direct_parameters(model, targets) if self.gradients else {}
        self.loss_name = ""
        self.loss_function: Loss | None = None
        self.examples = self.batches = 0
        self.loss_sum = 0.0
        self.one_by_one = ""
        self.skipped: list[str] = []
        self.reached: set[int] = set()
        self.proved = False
        self._drop_labels: bool | None = None
        self._places: list[int] = []
        self._known: tuple[dict[str, Any], list[int]] | None = None
        if self.direct:
            self.one_by_one = f"{targets[next(iter(self.direct))].name} has no linear module to put hooks on"

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
        """Take a whole batch; return false, with the reason kept, where that would not be exact."""
        if not self.gradients:
            return self._inputs(batch, size)
        if self.proved and size > 1 and self.how.on_nonfinite == "raise":
            self._streamed(batch, size)
            return True
        losses, counted = self._forward_backward(batch, size)
        examples = len(losses)
        for target, calls in zip(self.targets, self.recorder.calls, strict=True):
            if size > 1 and not is_batched(calls, size):
                shape = list(calls[0].inputs.shape)
                self.one_by_one = f"the input of {target.name} is {shape} in a batch of {size} examples"
                return False
        seen = self._seen(batch, size, examples)
        if self.how.check and not self.proved and examples > 1 and not draws(self.model, self.how.mode):
            with self._looking_away():
                self._compare(batch, size, examples, seen)
            if self.one_by_one:
                return False
        self._count(batch, losses, counted, seen, self._numbers(batch, size, examples))
        self.proved = self.proved or examples > 1
        return True

    def _streamed(self, batch: dict[str, Any], size: int) -> None:
        """Take a whole batch and count each target as soon as its gradients are there."""
        broken: dict[int, Tensor] = {}
        numbers: list[int] = []

        def sink(index: int, calls: list[Call]) -> None:
            seen = observe(self._as_before(index, calls, size), len(numbers))
            if seen is None:
                return
            self._describe(batch, index, seen, len(calls), numbers)
            self._update(index, seen)
            broken[index] = ~seen.finite()

        self.recorder.sink = sink
        try:
            losses, counted = self._forward_backward(batch, size, numbers)
            for index, calls in enumerate(self.recorder.calls):
                if any(call.output_gradient is not None for call in calls):
                    sink(index, calls)
        finally:
            self.recorder.sink = None
        for index, flags in broken.items():
            if bool(flags.any()):
                raise self._not_finite(index, flags)
        self._count(batch, losses, counted, [], numbers)

    def _rows(self, batch: dict[str, Any], size: int) -> None:
        """Take a batch one example at a time: exact whatever the model does with its batch dimension."""
        step = self._rows_per_example(batch, size)
        for start in range(0, size, step):
            row = example_of(batch, start // step, step)
            if self.gradients:
                losses, counted = self._forward_backward(row, step)
                seen, numbers = self._seen(row, step, 1), digests(row, step, 1)
                self._count(row, losses, counted, seen, numbers, offset=start // step)
            else:
                self._inputs(row, step, alone=True)

    def _rows_per_example(self, batch: dict[str, Any], size: int) -> int:
        """Return how many rows make one example, which the loss alone knows."""
        if not self.gradients or not callable(self.how.loss):
            return 1
        with torch.no_grad(), self._looking_away():
            self.recorder.clear()
            losses = self._losses(self.model(**for_model(batch)), batch, size)
            self.recorder.clear()
        return size // max(len(losses), 1)

    def _inputs(self, batch: dict[str, Any], size: int, *, alone: bool = False) -> bool:
        """Take what a forward pass alone shows; return false, with the reason kept, where rows are not examples."""
        self.recorder.clear()
        numbers = self._numbers(batch, size, size)

        def sink(index: int, calls: list[Call]) -> None:
            seen = observe(calls, 1 if alone else size, gradients=False)
            if seen is not None:
                self._describe(batch, index, seen, len(calls), numbers)
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

    def _forward_backward(
        self, batch: dict[str, Any], size: int, numbers: list[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the model and send each example's own loss back; return losses ``[n]`` and which of them count."""
        self.recorder.clear()
        for parameter in self.direct.values():
            parameter.grad = None
        outputs = self._outputs(batch)
        losses = self._losses(outputs, batch, size)
        del outputs  # logits that nobody needs again need no memory while the pass goes back
        if numbers is not None:
            numbers += self._numbers(batch, size, len(losses))
        finite = torch.isfinite(losses)
        if self.how.on_nonfinite == "raise" and not finite.all():
            raise ProfileError(
                f"the loss of example {self._first(~finite)} in calibration batch number "
                f"{self.batches} is not finite; look at that example, or profile in float32"
            )
        if not losses.requires_grad:
            raise ProfileError("the loss reaches none of the targets; do the labels belong to this model?")
        self.recorder.backward = True
        # The sum, not the mean: examples do not touch each other, so the gradient that reaches row n is that of its
        # own loss.
        (losses if bool(finite.all()) else losses[finite]).sum().backward()
        counted = counted_examples(self.loss_name, batch, losses)
        return losses.detach(), counted

    def _outputs(self, batch: dict[str, Any]) -> Any:
        """Run the model, without labels once they are known to make nothing but a loss that is not used."""
        given = for_model(batch)
        if self._drop_labels:
            del given["labels"]
        outputs = self.model(**given)
        if self._drop_labels is None and self.loss_function is None:
            with torch.no_grad(), self._looking_away(), self.recorder.paused():
                self._drop_labels = not callable(self.how.loss) and not needs_labels(self.model, batch)
        return outputs

    def _losses(self, outputs: Any, batch: dict[str, Any], size: int) -> Tensor:
        if self.loss_function is None:
            self.loss_name, self.loss_function = choose_loss(self.how.loss, self.model, outputs, batch)
        if self.how.labels == "model":
            batch = model_labels(self.loss_name, outputs, batch, self._numbers(batch, size, size), self.how.seed)
        losses = self.loss_function(outputs, batch)
        if losses.ndim != 1 or not len(losses) or size % len(losses):
            raise UserError(
                f"loss {self.loss_name!r} returned {list(losses.shape)}, not one value per example [{size}]"
            )
        return losses

    def _seen(self, batch: dict[str, Any], size: int, examples: int) -> Seen:
        """Return what the last pass left with the hooks and the direct parameters."""
        numbers = self._numbers(batch, size, examples)
        seen: Seen = []
        for index, calls in enumerate(self.recorder.calls):
            held = observe(calls, examples)
            if held is not None:
                self._describe(batch, index, held, len(calls), numbers)
            seen.append(held)
        for index, parameter in self.direct.items():
            if parameter.grad is not None:
                seen[index] = Observation(
                    weights=as_matrices(self.targets[index], parameter.grad), halves=halves_of(numbers)
                )
        return seen

    def _describe(self, batch: dict[str, Any], index: int, seen: Observation, calls: int, numbers: list[int]) -> None:
        """Say which half each example belongs to and which positions are padding."""
        seen.halves = halves_of(numbers[: len(seen)])
        if seen.inputs is not None:
            examples, length = seen.inputs.shape[:2]
            seen.real = real_positions(batch, self.targets[index], examples, length, calls)
            if seen.real is not None:
                seen.real = seen.real.to(seen.inputs.device)

    def _count(
        self, batch: dict[str, Any], losses: Tensor, counted: Tensor, seen: Seen, numbers: list[int], *, offset: int = 0
    ) -> None:
        """Count examples and what was seen of them, once they are certain to be used."""
        keep = (counted if len(counted) == len(losses) else torch.ones_like(losses, dtype=torch.bool)).cpu()
        good = torch.isfinite(losses).cpu()
        for index, held in enumerate(seen):
            if held is None:
                continue
            flags = held.finite().cpu()
            if self.how.on_nonfinite == "raise" and not flags[keep].all():
                raise self._not_finite(index, ~flags, offset)
            good &= flags
        for place in (~good & keep).nonzero().flatten().tolist():
            self.skipped.append(f"example {self._place(place + offset)} of batch {self.batches}")
        keep &= good
        for index, held in enumerate(seen):
            if held is not None and bool(good.any()):
                self._update(index, held if bool(good.all()) else held.rows(good))
        self.examples += int(keep.sum())
        self.loss_sum += float(losses.double()[keep.to(losses.device)].sum())
        self._commit([number for number, kept in zip(numbers, keep.tolist(), strict=True) if kept])
        self._keep_states(batch, keep if len(keep) == count_examples(for_model(batch)) else None)

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

    def _compare(self, batch: dict[str, Any], size: int, examples: int, seen: Seen) -> None:
        """Fall back to one example at a time when two examples' gradients depend on who else is in the batch."""
        rows, step = (0, examples - 1), size // examples
        together = [[squared_norm(held, row) for held in seen] for row in rows]
        for row, wholes in zip(rows, together, strict=True):
            single = example_of(batch, row, step)
            self._forward_backward(single, step)
            alone = [squared_norm(held, 0) for held in self._seen(single, step, 1)]
            if (name := first_difference(self.model, self.targets, wholes, alone)) is not None:
                self.one_by_one = f"batched gradients of {name} differ from those of single examples"
                return

    def _not_finite(self, index: int, bad: Tensor, offset: int = 0) -> ProfileError:
        return ProfileError(
            f"the gradient of {self.targets[index].name} for example {self._first(bad, offset)} in calibration batch "
            f"number {self.batches} is not finite; look at that example, or profile in float32"
        )

    def _first(self, bad: Tensor, offset: int = 0) -> int:
        """Return the first bad example by its place in the batch as it was given."""
        return min(self._place(row + offset) for row in bad.nonzero().flatten().tolist())
