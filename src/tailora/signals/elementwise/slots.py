"""Where the squares of per-example gradients are summed: one slot per parameter, one frame per batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from tailora.signals.elementwise.functions import as_dtype
from tailora.signals.observations import CHUNK_ELEMENTS, accumulator_dtype

Reduction = Literal["square", "absolute"]


@dataclass
class Frame:
    """What the layers of one backward pass must know about their batch.

    Attributes:
        size: Number of examples.
        length: Tokens per example, 0 where the batch has no tokens.
        weights: What each example counts, ``[n]``.
        collecting: Whether gradients are kept per example (the first look) instead of squared.
        grouped: Whether inputs whose first axis is a multiple of the examples are taken apart (only while checked).
        problem: Why this batch cannot be trusted; empty while all is well.
        layouts: Per leaf, what its calls looked like in this pass, in the order of the backward pass.
    """

    size: int = 1
    length: int = 0
    weights: Tensor = field(default_factory=lambda: torch.ones(1))
    collecting: bool = False
    grouped: bool = True
    problem: str = ""
    layouts: dict[str, list[str]] = field(default_factory=dict)
    _converted: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def begin(self) -> None:
        """Forget the last pass."""
        self.problem = ""
        self.layouts = {}

    def weights_as(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the examples' weights on a device in a dtype, converted once a batch.

        Args:
            device: The device.
            dtype: The dtype.

        Returns:
            ``[n]``.
        """
        held = self._converted.get((device, dtype))
        if held is None or held[0] is not self.weights:
            held = self._converted[device, dtype] = (self.weights, self.weights.to(device, dtype))
        return held[1]

    def by_example(self, name: str, tensor: Tensor, keep: int = 1) -> Tensor | None:
        """Return a tensor as ``[n, t, ...]``, or note the problem where the examples cannot be told apart.

        Args:
            name: Whose tensor it is, for the message.
            tensor: Examples on the first axis.
            keep: How many last axes stay as they are; 0 for token numbers.

        Returns:
            A view or copy, or ``None``.
        """
        first, tail = (tensor.shape[0] if tensor.ndim > keep else 0), tensor.shape[tensor.ndim - keep :]
        if first == self.size:
            layout = f"{tensor.ndim} axes"
        elif self.grouped and first > self.size and first % self.size == 0:
            parts = first // self.size
            layout = f"{tensor.ndim} axes, " + ("tokens" if parts == self.length else f"{parts} parts")
        else:
            self.problem = self.problem or (
                f"the input of {name} is {list(tensor.shape)} in a batch of {self.size} examples"
            )
            return None
        self.layouts.setdefault(name, []).append(layout)
        plain = first == self.size and tensor.ndim == keep + 2
        return tensor if plain else tensor.reshape(self.size, -1, *tail)


class Slot:
    """The running sum of one parameter.

    A parameter used several times in one pass has one gradient per example, the *sum* over its uses, so the uses are
    joined before anything is squared; a parameter used once is squared at once and nothing is held.

    Attributes:
        name: The parameter's name.
        parameter: The parameter.
        expected: Uses per pass, found by a first look.
        uses: Uses in this pass.
        swapped: Whether sums lie transposed: the product is quickest with the shorter side first.
        held: Per-example gradients of this pass, where they are held.
    """

    def __init__(self, name: str, parameter: nn.Parameter, reduction: Reduction, frame: Frame) -> None:
        self.name, self.parameter, self.frame = name, parameter, frame
        self.absolute = reduction == "absolute"
        self.swapped = parameter.ndim == 2 and parameter.shape[0] > parameter.shape[1]
        self.dtype = accumulator_dtype(parameter.dtype)
        self.expected = 0
        self.uses = 0
        self.held: Tensor | None = None
        self._pieces: list[tuple[Tensor, Tensor]] = []
        self._local: Tensor | None = None
        self._total: Tensor | None = None

    def begin(self) -> None:
        """Forget what a pass left."""
        self.uses = 0
        self.held = None
        self._pieces = []

    def local(self) -> Tensor:
        """Return this batch's sum, in the slot's own orientation."""
        if self._local is None:
            self._local = self._zeros()
        return self._local

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """Add the gradients ``sum_t left_t right_t^T``.

        Args:
            left: ``[n, t, a]``.
            right: ``[n, t, b]``, for a parameter ``(a, b)``.
        """
        if self.swapped:
            left, right = right, left
        left, right = as_dtype(left, self.dtype), as_dtype(right, self.dtype)
        if self._holds():
            self._hold(torch.bmm(left.transpose(1, 2), right))
        elif left.shape[1] == 1:
            # One position: the square of an outer product is the outer product of the squares.
            weighted = self._reduced(left[:, 0].clone()) * self._weights()[:, None]
            self.local().addmm_(weighted.t(), self._reduced(right[:, 0].clone()))
        else:
            step = max(1, CHUNK_ELEMENTS // max(left.shape[2] * right.shape[2], 1))
            for start in range(0, len(left), step):
                stop = start + step
                self._square(torch.bmm(left[start:stop].transpose(1, 2), right[start:stop]), start)
        self.uses += 1

    def add_dense(self, gradients: Tensor) -> None:
        """Add gradients in the parameter's own shape.

        Args:
            gradients: ``[n, *shape]``.
        """
        gradients = gradients.to(self.dtype).reshape(len(gradients), *self.parameter.shape)
        if self.swapped:
            gradients = gradients.transpose(1, 2)
        if self._holds():
            self._hold(gradients.contiguous())
        else:
            self._square(gradients.clone(memory_format=torch.contiguous_format), 0)
        self.uses += 1

    def add_rows(self, rows: Tensor, gradients: Tensor) -> None:
        """Add the gradients of a table: row ``rows[n, t]`` received ``gradients[n, t]``.

        Args:
            rows: Row numbers of the table in the slot's own orientation, int64 ``[n, t]``.
            gradients: ``[n, t, width]``.
        """
        count = self.local().shape[0]
        keys = (rows + torch.arange(len(rows), device=rows.device)[:, None] * count).reshape(-1)
        self._pieces.append((keys, gradients.to(self.dtype).reshape(-1, gradients.shape[-1])))
        self.uses += 1
        if self.frame.collecting:
            # Two or three examples: small enough to be laid out in full.
            full = torch.zeros(len(rows) * count, gradients.shape[-1], dtype=self.dtype, device=gradients.device)
            full.index_add_(0, *self._pieces.pop())
            self._hold(full.reshape(len(rows), count, -1))

    def end(self) -> None:
        """Square what was held until the last use of this pass."""
        if self.frame.collecting:
            return
        if self.uses != self.expected:
            self.frame.problem = self.frame.problem or (
                f"{self.name} was used {self.uses} times in a batch and {self.expected} times in the first one"
            )
        if self._pieces:
            keys = torch.cat([piece[0] for piece in self._pieces])
            unique, inverse = keys.unique(return_inverse=True)
            sums = torch.zeros(len(unique), self.local().shape[1], dtype=self.dtype, device=keys.device)
            sums.index_add_(0, inverse, torch.cat([piece[1] for piece in self._pieces]))
            count = self.local().shape[0]
            self.local().index_add_(0, unique % count, self._reduced(sums) * self._weights()[unique // count, None])
        if self.held is not None:
            self._square(self.held, 0)
        self.begin()

    def add_alone(self, gradient: Tensor, weight: float) -> None:
        """Add the gradient of one example, in the parameter's own shape.

        Args:
            gradient: The gradient.
            weight: What the example counts.
        """
        gradient = gradient.detach().to(self.dtype)
        if self.swapped:
            gradient = gradient.t()
        self.local().add_(gradient.abs() if self.absolute else gradient.square(), alpha=weight)

    def discard(self) -> None:
        """Throw this batch's sum away."""
        self.begin()
        if self._local is not None:
            self._local.zero_()

    def result(self, examples: int) -> Tensor:
        """Return the mean over examples in the parameter's own shape.

        Args:
            examples: How many examples counted.

        Returns:
            A new contiguous tensor.
        """
        total = self._zeros() if self._total is None else self._total
        return (total.t() if self.swapped else total).div(max(examples, 1)).contiguous()

    def _zeros(self) -> Tensor:
        shape = tuple(reversed(self.parameter.shape)) if self.swapped else tuple(self.parameter.shape)
        return torch.zeros(shape, dtype=self.dtype, device=self.parameter.device)

    def _weights(self) -> Tensor:
        return self.frame.weights_as(self.parameter.device, self.dtype)

    def _holds(self) -> bool:
        return self.frame.collecting or self.expected != 1

    def _hold(self, gradients: Tensor) -> None:
        self.held = gradients if self.held is None else self.held.add_(gradients)

    def _reduced(self, gradients: Tensor) -> Tensor:
        return gradients.abs_() if self.absolute else gradients.square_()

    def _square(self, gradients: Tensor, start: int) -> None:
        """Reduce in place, weigh and sum over the examples in one pass over memory."""
        count = len(gradients)
        flat = self._reduced(gradients).reshape(count, -1)
        self.local().view(-1).addmv_(flat.t(), self._weights()[start : start + count])


def all_finite(slots: Sequence[Slot]) -> bool:
    """Tell whether this batch's sums are finite; they have no negative element, so one sum tells of each.

    Args:
        slots: All slots.

    Returns:
        Whether they are.
    """
    held = [slot._local for slot in slots if slot._local is not None]
    sums = torch._foreach_norm(held, 1) if held else ()  # pyright: ignore[reportPrivateImportUsage]
    return all(bool(torch.isfinite(one)) for one in _by_device(sums))


def commit(slots: Sequence[Slot]) -> None:
    """Move this batch's sums into the totals.

    Args:
        slots: All slots; changed.
    """
    totals, added = [], []
    for slot in slots:
        if slot._local is not None:
            slot._total = slot._zeros() if slot._total is None else slot._total
            totals.append(slot._total)
            added.append(slot._local)
    if totals:
        torch._foreach_add_(totals, added)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_zero_(added)  # pyright: ignore[reportPrivateImportUsage]


def _by_device(scalars: Sequence[Tensor]) -> list[Tensor]:
    """Return one sum per device and dtype, so that each device is waited for once."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for scalar in scalars:
        groups.setdefault((scalar.device, scalar.dtype), []).append(scalar)
    return [torch.stack(group).sum() for group in groups.values()]
