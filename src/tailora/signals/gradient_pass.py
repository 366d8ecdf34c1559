"""Forward and backward passes over batches: whole where that is exact, one example at a time elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tailora.errors import ProfileError, UserError
from tailora.signals.agreement import draws, first_difference, squared_norm
from tailora.signals.base import Statistic
from tailora.signals.batching import count_examples
from tailora.signals.calling import needs_labels
from tailora.signals.capture import Call, as_matrices, direct_parameters, is_batched, observe
from tailora.signals.examples import digests, example_of, for_model, halves_of
from tailora.signals.first_look import Draws, refuse_dead
from tailora.signals.hidden_states import BlockStates
from tailora.signals.losses import choose_loss, counted_examples
from tailora.signals.model_labels import model_labels
from tailora.signals.observations import Observation
from tailora.signals.passes import Pass
from tailora.targets import Target

if TYPE_CHECKING:
    from tailora.signals.collect import Collecting

Seen = list[Observation | None]
"""Per target, what was seen of some examples; ``None`` where its layer was never called."""


class GradientPass(Pass):
    """Sends each example's own loss back as well, and feeds statistics of gradients exactly.

    Until one batch of several examples was found to be exact, everything a batch leaves is held, looked at, and only
    then counted.  Afterwards each target is counted as soon as the backward pass has gone through it.
    """

    gradients = True

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        statistics: Sequence[Statistic],
        how: Collecting,
        states: BlockStates | None = None,
    ) -> None:
        """Look at the targets; no hook is registered yet."""
        super().__init__(model, targets, statistics, how, states)
        self.direct = direct_parameters(model, targets)
        self._drop_labels: bool | None = None
        self._looked = False
        self._counted = torch.ones(0, dtype=torch.bool)
        if self.direct:
            self.one_by_one = f"{targets[next(iter(self.direct))].name} has no linear module to put hooks on"

    def _whole(self, batch: dict[str, Any], size: int) -> bool:
        """Take a whole batch; return false, with the reason kept, where that would not be exact."""
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
            self._describe(batch, index, seen, numbers)
            if not bool(self._counted.any()):
                return
            if not bool(self._counted.all()):
                seen = seen.rows(self._counted)
            self._update(index, seen)
            broken[index] = ~seen.finite()

        self.recorder.sink = sink
        try:
            losses, counted = self._forward_backward(batch, size, numbers)
            for index, calls in enumerate(self.recorder.calls):
                if calls:
                    sink(index, calls)
        finally:
            self.recorder.sink = None
        for index, flags in broken.items():
            if bool(flags.any()):
                every = torch.zeros(len(counted), dtype=torch.bool).masked_scatter(counted, flags.cpu())
                raise self._not_finite(index, every)
        self._count(batch, losses, counted, [], numbers)

    def _rows(self, batch: dict[str, Any], size: int) -> None:
        """Take a batch one example at a time: exact whatever the model does with its batch dimension."""
        step = self._rows_per_example(batch, size)
        for start in range(0, size, step):
            row = example_of(batch, start // step, step)
            losses, counted = self._forward_backward(row, step)
            seen, numbers = self._seen(row, step, 1), digests(row, step, 1)
            self._count(row, losses, counted, seen, numbers, offset=start // step)

    def _rows_per_example(self, batch: dict[str, Any], size: int) -> int:
        """Return how many rows make one example, which the loss alone knows."""
        if not callable(self.how.loss):
            return 1
        with torch.no_grad(), self._looking_away():
            self.recorder.clear()
            losses = self._losses(self.model(**for_model(batch)), batch, size)
            self.recorder.clear()
        return size // max(len(losses), 1)

    def _forward_backward(
        self, batch: dict[str, Any], size: int, numbers: list[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the model and send each example's own loss back; return losses ``[n]`` and which of them count."""
        self.recorder.clear()
        for parameter in self.direct.values():
            parameter.grad = None
        before = None if self._looked else Draws()
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
        # On the host, once: what looks at it for every layer would wait for a GPU each time.
        counted = self._counted = counted_examples(self.loss_name, batch, losses).cpu()
        # The sum, not the mean: examples do not touch each other, so the gradient that reaches row n is that of its
        # own loss.
        (losses if bool(finite.all()) else losses[finite]).sum().backward()
        if before is not None:
            self._looked = True
            if missing := self._look(batch, size):
                # An in-place change of a view drops the hook on it: the loss may reach what it seems not to reach.
                before.again()
                self.recorder.separate = True
                taken = self._forward_backward(batch, size, numbers)
                self.recorder.separate = self.recorder.missing() != missing
                return taken
        return losses.detach(), counted

    def _look(self, batch: dict[str, Any], size: int) -> list[int]:
        """Return targets that were called and got no gradient in the first pass; refuse those without a call."""
        missing, uncalled = self.recorder.missing(), self.recorder.uncalled()
        if uncalled:
            one = example_of(batch, 0, 1) if size > 1 and not callable(self.how.loss) else batch
            rows = count_examples(for_model(one))
            with self._looking_away(), self.recorder.paused():
                refuse_dead(
                    self.model, self.targets, uncalled, lambda: self._losses(self.model(**for_model(one)), one, rows)
                )
        return missing

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
                self._describe(batch, index, held, numbers)
            seen.append(held)
        for index, parameter in self.direct.items():
            if parameter.grad is not None:
                seen[index] = Observation(
                    weights=as_matrices(self.model, self.targets[index], parameter.grad), halves=halves_of(numbers)
                )
        return seen

    def _count(
        self, batch: dict[str, Any], losses: Tensor, counted: Tensor, seen: Seen, numbers: list[int], *, offset: int = 0
    ) -> None:
        """Count examples and what was seen of them, once they are certain to be used."""
        keep = counted.clone()
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
            if held is not None and bool(keep.any()):
                self._update(index, held if bool(keep.all()) else held.rows(keep))
        self.examples += int(keep.sum())
        self.loss_sum += float(losses.double()[keep.to(losses.device)].sum())
        self._commit([number for number, kept in zip(numbers, keep.tolist(), strict=True) if kept])
        self._keep_states(batch, keep if len(keep) == count_examples(for_model(batch)) else None)

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
