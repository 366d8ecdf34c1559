"""One pass over calibration batches that feeds every signal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tailora.errors import ProfileError, UserError
from tailora.signals import SIGNALS
from tailora.signals.capture import (
    InputsModified,
    Recorder,
    as_matrices,
    direct_parameters,
    gradients_of,
    is_batched,
    undisturbed,
)
from tailora.signals.gradients import ExampleGradients
from tailora.signals.losses import Loss, choose_loss, counted_examples
from tailora.targets import Target

Gradients = list[ExampleGradients | None]
"""Per target, the gradients of some examples; ``None`` where the loss does not reach it."""


@dataclass(frozen=True)
class Collection:
    """What a pass found.

    Attributes:
        signals: Signal name to array, first axis in target order.
        examples: Examples that counted.
        batches: Batches seen.
        loss: Name of the per-example loss.
        mean_loss: Mean loss over the examples, in nats.
        one_by_one: Why examples were taken one at a time; empty where whole batches were exact.
    """

    signals: dict[str, np.ndarray]
    examples: int
    batches: int
    loss: str
    mean_loss: float
    one_by_one: str


def collect(
    model: nn.Module,
    targets: Sequence[Target],
    batches: Iterable[Mapping[str, Any]],
    signals: Sequence[str],
    *,
    loss: str | Loss = "auto",
    check: bool = True,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Collection:
    """Measure signals in one pass.

    Args:
        model: The base model; it is left exactly as it was.
        targets: What is measured.
        batches: Dicts the model is called with, labels included.
        signals: Registered signal names.
        loss: ``auto``, a name, or a callable from outputs and batch to one loss per example.
        check: Compare two examples of the first batch with the one-at-a-time gradients.
        seed: For signals that draw at random.
        progress: Called with the number of examples seen so far.

    Returns:
        The signals and what was counted.

    Raises:
        ProfileError: A loss or gradient is not finite, or nothing reaches any target.
        UserError: There is no batch, or it lacks labels.
    """
    accumulators = {name: SIGNALS[name].start(targets, seed) for name in dict.fromkeys(signals)}
    run = _Pass(model, targets, loss, check=check)
    reached: set[int] = set()
    with undisturbed(model, run.direct), torch.enable_grad():
        try:
            run.recorder.start()
            for batch in batches:
                before = run.examples
                for gradients in run.take(_on_device(batch, model)):
                    reached.update(index for index, held in enumerate(gradients) if held is not None)
                    for index, chunk in run.finite_chunks(gradients):
                        for accumulator in accumulators.values():
                            accumulator.update(index, chunk)
                for accumulator in accumulators.values():
                    accumulator.end_batch(run.examples - before)
                run.batches += 1
                if progress is not None:
                    progress(run.examples)
        finally:
            run.recorder.stop()
    if not run.batches:
        raise UserError("there are no calibration batches; give at least one batch with labels")
    if not reached:
        raise ProfileError("the loss reaches none of the targets; do the labels belong to this model?")
    results = {name: accumulator.result() for name, accumulator in accumulators.items()}
    mean = run.loss_sum / max(run.examples, 1)
    return Collection(results, run.examples, run.batches, run.loss_name, mean, run.one_by_one)


class _Pass:
    """Runs the model batch by batch and hands out exact per-example gradients."""

    def __init__(self, model: nn.Module, targets: Sequence[Target], loss: str | Loss, *, check: bool) -> None:
        self.model, self.targets, self.loss, self.check = model, targets, loss, check
        self.recorder = Recorder(model, targets)
        self.direct = direct_parameters(model, targets)
        self.loss_name, self.loss_function = "", None
        self.examples = self.batches = 0
        self.loss_sum = 0.0
        self.one_by_one = ""
        if self.direct:
            self.one_by_one = f"{targets[next(iter(self.direct))].name} has no linear module to put hooks on"

    def take(self, batch: dict[str, Any]) -> list[Gradients]:
        """Return the gradients of one batch, in one piece or one example at a time."""
        size = _size(batch)
        try:
            taken = self._whole(batch, size) if size == 1 or not self.one_by_one else None
            return self._rows(batch, range(size), size, count=True) if taken is None else [taken]
        except InputsModified:
            if self.recorder.clone:
                raise ProfileError("a layer's input changes while it is copied; is the model run in threads?") from None
            self.recorder.clone = True
            return self.take(batch)

    def finite_chunks(self, gradients: Gradients) -> Iterable[tuple[int, Tensor]]:
        """Yield target index and per-example gradients, refusing values that are not finite."""
        for index, held in enumerate(gradients):
            if held is None:
                continue
            for chunk in held.chunks():
                if not torch.isfinite(chunk).all():
                    raise ProfileError(
                        f"the gradient of {self.targets[index].name!r} is not finite in calibration batch number "
                        f"{self.batches}; look for a bad example there, or profile in float32"
                    )
                yield index, chunk

    def _whole(self, batch: dict[str, Any], size: int) -> Gradients | None:
        """Return a whole batch's gradients, or ``None`` where that would not be exact (and remember why)."""
        losses, counted = self._forward_backward(batch, size)
        for target, calls in zip(self.targets, self.recorder.calls, strict=True):
            if size > 1 and not is_batched(calls, size):
                shape = list(calls[0].inputs.shape)
                self.one_by_one = f"the input of {target.name} is {shape} in a batch of {size} examples"
                return None
        gradients = self._recorded(size)
        if self.check and not self.batches and size > 1:
            self._compare(batch, size, gradients)
            if self.one_by_one:
                return None
        self._count(losses, counted)
        return gradients

    def _rows(self, batch: dict[str, Any], rows: Iterable[int], size: int, *, count: bool) -> list[Gradients]:
        """Return some examples' gradients, one pass each: exact whatever the model does with its batch dimension."""
        taken = []
        for row in rows:
            losses, counted = self._forward_backward(_row(batch, row, size), 1)
            taken.append(self._recorded(1))
            if count:
                self._count(losses, counted)
        return taken

    def _forward_backward(self, batch: dict[str, Any], size: int) -> tuple[Tensor, Tensor]:
        """Run the model and send each example's own loss back; return losses ``[n]`` and which of them count."""
        self.recorder.clear()
        for parameter in self.direct.values():
            parameter.grad = None
        outputs = self.model(**batch)
        if self.loss_function is None:
            self.loss_name, self.loss_function = choose_loss(self.loss, self.model, outputs, batch)
        losses = self.loss_function(outputs, batch)
        if losses.shape != (size,):
            raise UserError(
                f"loss {self.loss_name!r} returned {list(losses.shape)}, not one value per example [{size}]"
            )
        if not torch.isfinite(losses).all():
            bad = int((~torch.isfinite(losses)).int().argmax())
            raise ProfileError(
                f"the loss of example {bad} in calibration batch number {self.batches} is not finite; look at that "
                "example, or profile in float32"
            )
        if not losses.requires_grad:
            raise ProfileError("the loss reaches none of the targets; do the labels belong to this model?")
        # The sum, not the mean: examples do not touch each other, so the gradient that reaches row n is that of its
        # own loss.
        losses.sum().backward()
        return losses.detach(), counted_examples(self.loss_name, batch, losses)

    def _recorded(self, size: int) -> Gradients:
        """Return the gradients that the last pass left with the hooks and the direct parameters."""
        gradients: Gradients = [gradients_of(calls, size) for calls in self.recorder.calls]
        for index, parameter in self.direct.items():
            if parameter.grad is not None:
                gradients[index] = ExampleGradients(weights=as_matrices(self.targets[index], parameter.grad))
        return gradients

    def _compare(self, batch: dict[str, Any], size: int, gradients: Gradients) -> None:
        """Fall back to one example at a time when two examples' gradients depend on who else is in the batch."""
        rows = (0, size - 1)
        singles = self._rows(batch, rows, size, count=False)
        wholes = [[_squared_norm(held, row) for held in gradients] for row in rows]
        alone = [[_squared_norm(held, 0) for held in single] for single in singles]
        for together, single in zip(wholes, alone, strict=True):
            scale = max(max(single), 1e-300)
            coarse = any(p.dtype in (torch.float16, torch.bfloat16) for p in self.model.parameters())
            for target, one, other in zip(self.targets, together, single, strict=True):
                if abs(one - other) > (0.1 if coarse else 2e-3) * max(other, 1e-6 * scale):
                    self.one_by_one = f"batched gradients of {target.name} differ from those of single examples"
                    return

    def _count(self, losses: Tensor, counted: Tensor) -> None:
        """Count examples and their losses once they are certain to be used."""
        self.examples += int(counted.sum())
        self.loss_sum += float((losses.double() * counted).sum())


def _squared_norm(held: ExampleGradients | None, row: int) -> float:
    """Return the squared norm of one example's gradient."""
    if held is None:
        return 0.0
    if held.weights is None and held.inputs is not None and held.output_gradients is not None:
        held = ExampleGradients(held.inputs[row : row + 1], held.output_gradients[row : row + 1])
    return sum(float(chunk.double().square().sum()) for chunk in held.chunks())


def _on_device(batch: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return the batch with its tensors on the device of the model's first parameter."""
    device = next(model.parameters()).device
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _size(batch: Mapping[str, Any]) -> int:
    """Return the number of examples in a batch."""
    tensors = [value for value in batch.values() if isinstance(value, Tensor) and value.ndim]
    if not tensors:
        raise UserError(
            f"a calibration batch holds no tensor (keys: {', '.join(batch) or 'none'}); give dicts of tensors"
        )
    for key in ("labels", "input_ids", "pixel_values"):
        if isinstance(batch.get(key), Tensor) and batch[key].ndim:
            return len(batch[key])
    return len(tensors[0])


def _row(batch: Mapping[str, Any], index: int, size: int) -> dict[str, Any]:
    """Return one example as a batch of its own; tensors of another first dimension are shared by all."""
    return {
        key: value[index : index + 1] if isinstance(value, Tensor) and value.ndim and len(value) == size else value
        for key, value in batch.items()
    }
