"""Forward and backward passes that fill the slots: whole batches where that is exact, one example at a time else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tailora.errors import ProfileError, UserError
from tailora.signals.batching import count_examples, real_lengths, take_rows, trim
from tailora.signals.elementwise.find import find_leaves
from tailora.signals.elementwise.kinds import Kind, Term, terms
from tailora.signals.elementwise.leaves import patched
from tailora.signals.elementwise.model import choose_loss_of, labels_matter, virtual_tokens
from tailora.signals.elementwise.slots import Frame, Reduction, Slot, all_finite, commit
from tailora.signals.losses import Loss, counted_examples


@dataclass(frozen=True)
class Options:
    """What the caller chose; see ``elementwise_fisher``."""

    kind: Kind
    reduction: Reduction
    loss: str | Loss
    mode: str
    check: bool
    seed: int
    on_nonfinite: str


class Passes:
    """Takes batches and adds their squares to the slots.

    Attributes:
        one_by_one: Why examples are taken one at a time; empty while whole batches are exact.
        examples: Examples that counted.
        skipped: Examples left out because something was not finite.
        reached: Slots that some loss reached.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], options: Options) -> None:
        self.model, self.options = model, options
        self.frame = Frame(grouped=options.check)
        self.slots = [Slot(name, p, options.reduction, self.frame) for name, p in parameters.items()]
        self.leaves, self.one_by_one = find_leaves(model, self.slots, self.frame)
        self.loss_name, self.loss_function = "", None
        self.examples = self.skipped = self.seen = self.batches = 0
        self.loss_sum = 0.0
        self.reached: set[str] = set()
        self._layouts: dict[str, list[str]] | None = None
        self._drop_labels: bool | None = None
        self._trims: bool | None = None

    def take(self, batch: Mapping[str, Any]) -> None:
        """Add one batch.

        Args:
            batch: What the model is called with, on its device.

        Raises:
            ProfileError: A loss or gradient is not finite and the caller wants to know.
        """
        size = count_examples(batch)
        if self._drop_labels is None:
            self._prepare(batch)
        if size > 1 and not self.one_by_one and self._layouts is None:
            self._look(batch)
        whole = size > 1 and not self.one_by_one and self._layouts is not None
        if not (whole and self._whole(batch, size)):
            for row in range(size):
                self._single(batch, row)
        self.seen += size
        self.batches += 1

    def _prepare(self, batch: Mapping[str, Any]) -> None:
        """Choose the loss and see whether the model's outputs depend on the labels."""
        self._gradients_for(self.slots)
        self.model.eval()
        few = take_rows(batch, _telling_rows(batch) or [0]) if count_examples(batch) > 1 else dict(batch)
        with torch.no_grad():
            outputs = self.model(**few)
            named = self._with_labels(outputs, few)
            self.loss_name, self.loss_function = choose_loss_of(self.model, self.options.loss, outputs, named)
            self._drop_labels = not callable(self.options.loss) and not labels_matter(self.model, few, outputs)
        self._set_mode()

    def _look(self, batch: Mapping[str, Any]) -> None:
        """Count calls on two examples and compare their gradients with each example's own."""
        rows = _telling_rows(batch)
        if len(rows) < 2:
            return
        self.model.eval()
        pair = take_rows(batch, rows)
        self._begin(pair, 2)
        self.frame.collecting = True
        try:
            self._gradients_for([])
            with patched(self.leaves):
                self._backward(pair, [self.seen + row for row in rows], first_only=True)
            self.one_by_one, layouts = self.frame.problem, self.frame.layouts
            for slot in self.slots:
                slot.expected = slot.uses
            told = True
            if self.options.check and not self.one_by_one:
                self.one_by_one, told = self._compare(batch, rows)
            # Two examples without a gradient show nothing: the next batch is looked at again.
            self._layouts = layouts if told and not self.one_by_one else None
        finally:
            self.frame.collecting = False
            for slot in self.slots:
                slot.discard()
            self._set_mode()

    def _compare(self, batch: Mapping[str, Any], rows: Sequence[int]) -> tuple[str, bool]:
        """Return where two examples' gradients depend on being in one batch (or ""), and whether there are any."""
        held = [slot.held for slot in self.slots]
        told = False
        self._gradients_for(self.slots)
        for place, row in enumerate(rows):
            alone = self._gradients_of_row(take_rows(batch, [row]), self.seen + row)
            together = [None if one is None else one[place] for one in held]
            scale = _scale(alone)
            told = told or _tells(alone)
            for slot, one, other in zip(self.slots, together, alone, strict=True):
                if one is not None and slot.swapped:
                    one = one.t()
                if one is None and other is not None and bool((other != 0).any()):
                    return f"{slot.name} has a gradient although its layer is never called", True
                if not _agree(one, other, scale):
                    return f"batched gradients of {slot.name} differ from those of single examples", True
        return "", told

    def _whole(self, batch: Mapping[str, Any], size: int) -> bool:
        """Add a whole batch, or return false (with nothing added) where that would not be exact."""
        self._begin(batch, size)
        wires = [slot for slot in self.slots if not slot.expected]
        self._gradients_for(wires)
        with patched(self.leaves):
            losses = self._backward(batch, [self.seen + row for row in range(size)])
        # A parameter that no layer uses has no gradient, or else something reads it without calling the layer.
        for slot in wires:
            if slot.parameter.grad is not None and bool((slot.parameter.grad != 0).any()):
                self.one_by_one = f"{slot.name} has a gradient although its layer is never called"
        self.one_by_one = self.one_by_one or self.frame.problem
        if self.one_by_one or losses is None or not all_finite(self.slots):
            for slot in self.slots:
                slot.discard()
            return False
        self._commit(losses)
        self.reached.update(slot.name for slot in self.slots if slot.expected)
        return True

    def _single(self, batch: Mapping[str, Any], row: int) -> None:
        """Add one example by autograd's own gradients: exact whatever the model does with its batch axis."""
        one = take_rows(batch, [row]) if count_examples(batch) > 1 else dict(batch)
        self._gradients_for(self.slots)
        one = self._trimmed(one, self.seen + row)
        self._begin(one, 1)
        losses = self._backward(one, [self.seen + row])
        if losses is not None and all_finite(self.slots):
            self._commit(losses)
            return
        for slot in self.slots:
            slot.discard()
        if self.options.on_nonfinite == "skip":
            self.skipped += 1
            return
        what = "loss" if losses is None else "gradient"
        raise ProfileError(
            f"the {what} of example {row} in batch number {self.batches} is not finite; look at that example, measure "
            "in float32, or leave such examples out with on_nonfinite='skip'"
        )

    def _trimmed(self, one: dict[str, Any], seed: int) -> dict[str, Any]:
        """Cut one example's padding, once an example with a gradient showed that the model does not look at it."""
        short = trim(one)
        if self._trims is False or all(short[key] is one[key] for key in one):
            return one
        if self._trims is None:
            self.model.eval()
            padded, bare = self._gradients_of_row(one, seed), self._gradients_of_row(short, seed)
            scale = _scale(padded)
            if _tells([*padded, *bare]):
                self._trims = all(_agree(a, b, scale) for a, b in zip(padded, bare, strict=True))
            self._set_mode()
        return short if self._trims else one

    def _gradients_of_row(self, one: Mapping[str, Any], seed: int) -> list[Tensor | None]:
        """Return autograd's gradients of one example."""
        self._begin(one, 1)
        self._clear_gradients()
        outputs = self._forward(one)
        term = next(iter(self._terms(outputs, one, [seed])))
        losses = self._losses(outputs, term, 1)
        del outputs
        if losses.requires_grad:
            losses.sum().backward()
        return [None if slot.parameter.grad is None else slot.parameter.grad.detach().clone() for slot in self.slots]

    def _backward(self, batch: Mapping[str, Any], seeds: list[int], *, first_only: bool = False) -> Tensor | None:
        """Run all terms of a batch; return weighted losses and counts ``[2, n]``, or ``None``: a loss is not finite."""
        outputs = self._forward(batch)
        alone = len(seeds) == 1 and not self.frame.collecting
        sums = torch.zeros(2, len(seeds), dtype=torch.float64)
        for term in self._terms(outputs, batch, seeds):
            losses = self._losses(outputs, term, len(seeds))
            if term.last or first_only:
                outputs = None  # logits that nobody needs again need no memory while the pass goes back
            counted = counted_examples(self.loss_name, term.batch, losses).cpu().double()
            if not torch.isfinite(losses).all():
                return None
            if not losses.requires_grad:
                raise ProfileError("the loss reaches none of the parameters; do the labels belong to this model?")
            weights = term.weights * counted
            self.frame.weights, self.frame.layouts = weights.to(losses.device), {}
            for slot in self.slots:
                slot.begin()
            self._clear_gradients()
            # The sum, not the mean: examples do not touch each other, so the gradient that reaches row n is that of
            # its own loss.
            losses.sum().backward(retain_graph=not term.last and not first_only)
            if alone:
                self._add_alone(float(weights[0]))
            else:
                self._end_of_term()
            sums[0] += losses.detach().double().cpu() * weights
            sums[1] += weights
            if first_only:
                break
        return sums

    def _end_of_term(self) -> None:
        """Square what was held, and see whether the layers were called as in the first look."""
        for slot in self.slots:
            slot.end()
        if self._layouts is not None and self.frame.layouts != self._layouts:
            self.frame.problem = self.frame.problem or "the layers of a later batch see other shapes than the first did"

    def _add_alone(self, weight: float) -> None:
        """Add autograd's own gradients of one example."""
        for slot in self.slots:
            if slot.parameter.grad is not None:
                self.reached.add(slot.name)
                if weight:
                    slot.add_alone(slot.parameter.grad, weight)

    def _forward(self, batch: Mapping[str, Any]) -> Any:
        """Call the model, without labels where they change nothing but its own loss, which nobody needs."""
        if self._drop_labels:
            batch = {key: value for key, value in batch.items() if key != "labels"}
        return self.model(**batch)

    def _terms(self, outputs: Any, batch: Mapping[str, Any], seeds: list[int]) -> Any:
        """Return the backward passes of a batch."""
        mixed = [(self.options.seed * 1_000_003 + seed) % 2**63 for seed in seeds]
        return terms(self.options.kind, self.loss_name, outputs, self._with_labels(outputs, batch), mixed)

    def _with_labels(self, outputs: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch with labels as long as the logits, which virtual tokens lengthen at the front."""
        labels, extra = batch.get("labels"), virtual_tokens(self.model, outputs, batch)
        if not extra or labels is None:
            return batch
        return {**batch, "labels": torch.cat([labels.new_full((len(labels), extra), -100), labels], dim=1)}

    def _losses(self, outputs: Any, term: Term, size: int) -> Tensor:
        """Return one loss per example."""
        if self.loss_function is None:
            raise AssertionError("the loss is chosen before the first pass")
        losses = self.loss_function(outputs, term.batch)
        if losses.shape != (size,):
            raise UserError(
                f"loss {self.loss_name!r} returned {list(losses.shape)}, not one value per example [{size}]"
            )
        return losses

    def _begin(self, batch: Mapping[str, Any], size: int) -> None:
        """Set the frame for one pass."""
        tokens = batch.get("input_ids", batch.get("attention_mask"))
        self.frame.size = size
        self.frame.length = tokens.shape[1] if isinstance(tokens, Tensor) and tokens.ndim > 1 else 0
        self.frame.begin()

    def _commit(self, sums: Tensor) -> None:
        """Keep what a pass added."""
        commit(self.slots)
        # The weights of one example add up to 1 over the terms, or to 0 where it has no label.
        self.examples += int((sums[1] > 0.5).sum())
        self.loss_sum += float(sums[0].sum())

    def _set_mode(self) -> None:
        self.model.train(self.options.mode == "train")

    def _gradients_for(self, slots: Sequence[Slot]) -> None:
        """Let autograd itself form the gradients of these slots' parameters, and of no other."""
        for slot in self.slots:
            slot.parameter.requires_grad_(False)
        for slot in slots:
            slot.parameter.requires_grad_(True)
        self._clear_gradients()

    def _clear_gradients(self) -> None:
        for slot in self.slots:
            slot.parameter.grad = None


def _telling_rows(batch: Mapping[str, Any]) -> list[int]:
    """Return two examples that have labels, the longest and the shortest; fewer where there are not two."""
    size = count_examples(batch)
    labels = batch.get("labels")
    rows = list(range(size))
    if isinstance(labels, Tensor) and labels.ndim == 2 and not labels.is_floating_point() and labels.shape[1] > 1:
        rows = [row for row in rows if bool((labels[row, 1:] != -100).any())]
    lengths = real_lengths(batch)
    if lengths is not None:
        rows.sort(key=lambda row: int(lengths[row]))
    return [rows[-1], rows[0]] if len(rows) > 1 else []


def _scale(gradients: Sequence[Tensor | None]) -> tuple[float, bool]:
    """Return the largest norm of any gradient of an example, and whether any is of 16 bits."""
    given = [one for one in gradients if one is not None]
    coarse = any(one.dtype in (torch.float16, torch.bfloat16) for one in given)
    return max((float(one.double().norm()) for one in given), default=0.0), coarse


def _tells(gradients: Sequence[Tensor | None]) -> bool:
    """Tell whether gradients can show a difference: all are finite, and not all are zero as without a label."""
    norms = [float(one.double().norm()) for one in gradients if one is not None]
    return any(norms) and all(map(math.isfinite, norms))


def _agree(one: Tensor | None, other: Tensor | None, scale: tuple[float, bool]) -> bool:
    """Tell whether two gradients are the same but for rounding, seen against the largest one of all."""
    known = one if one is not None else other
    if known is None:
        return True
    largest, coarse = scale
    tolerance = 0.1 if coarse else 1e-7 if known.dtype == torch.float64 else 1e-3
    a = torch.zeros_like(known, dtype=torch.float64) if one is None else one.double()
    b = torch.zeros_like(a) if other is None else other.double()
    difference = float((a - b).norm())
    # Not finite: nothing can be said here, and the batch itself will be refused or skipped.
    return not difference > tolerance * max(float(b.norm()), 1e-3 * largest)
