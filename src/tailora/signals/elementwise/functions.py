"""Autograd functions that hand per-example gradients to slots instead of forming a weight gradient.

Layer and tap keep what they need with ``save_for_backward``, so that both forms of gradient checkpointing free and
recompute it.  A zero that requires a gradient keeps the graph alive where nothing else does.  No output is a view:
models may change a layer's output in place, which autograd forbids for a view that a function returned.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tailora.signals.quiet import without_autocast

Take = Callable[[Tensor, Tensor], None]
"""Called with what was saved and the gradient at the output."""


def as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a dtype; a comparison is cheaper than a call of ``to`` that has nothing to do.

    Args:
        tensor: Any tensor.
        dtype: The dtype.

    Returns:
        The tensor itself or a copy.
    """
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


@functools.cache
def _spark(device: torch.device) -> Tensor:
    """Return the one zero of a device; no gradient ever reaches it, so it can be shared."""
    with torch.inference_mode(False):
        return torch.zeros((), device=device, requires_grad=True)


def spark(like: Tensor) -> Tensor:
    """Return a zero that requires a gradient.

    Args:
        like: Whose device it is on.

    Returns:
        A scalar.
    """
    return _spark(like.device)


def _no_view(y: Tensor) -> Tensor:
    """Return a tensor on the same memory that autograd takes for no view; nobody but the caller may hold ``y``."""
    return y.data


class LinearTap(torch.autograd.Function):
    """A linear layer, ``y = x W^T + b``, whose weight gets no gradient of its own."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, live: Tensor, take: Take, keeps: bool
    ) -> Tensor:
        """Return the layer's output; its input is only kept where ``keeps``, since a bias alone does not need it."""
        ctx.save_for_backward(x if keeps else None, weight)
        ctx.take, ctx.dtype = take, x.dtype
        y = F.linear(x, weight, bias)
        # With a bias and more than two axes it is a view of the product.
        return _no_view(y) if y._is_view() else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Hand input and output gradient on, and return the gradient of the input."""
        x, weight = ctx.saved_tensors
        with without_autocast(gradient.device):
            # Without the input, the output's gradient tells the same of where the examples lie.
            ctx.take(gradient if x is None else x, gradient)
            inner = None
            if ctx.needs_input_grad[0]:
                inner = as_dtype(gradient @ as_dtype(weight, gradient.dtype), ctx.dtype)
        return inner, None, None, None, None, None


class TableTap(torch.autograd.Function):
    """An embedding table whose weight gets no gradient of its own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, live: Tensor, take: Take) -> Tensor:
        """Return the rows and keep their numbers."""
        ctx.save_for_backward(rows)
        ctx.take = take
        return F.embedding(rows, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Hand row numbers and output gradient on."""
        (rows,) = ctx.saved_tensors
        with without_autocast(gradient.device):
            ctx.take(rows, gradient)
        return None, None, None, None


class Tap(torch.autograd.Function):
    """The identity, which hands on a saved tensor and the gradient that passes.

    Its output takes the place of ``y``, which is to be just computed, used nowhere else and not needed by what made it.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, saved: Tensor, live: Tensor, take: Take) -> Tensor:
        """Return ``y`` unchanged."""
        ctx.save_for_backward(saved)
        ctx.take = take
        return _no_view(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Hand the saved tensor and the gradient on, and let the gradient pass."""
        (saved,) = ctx.saved_tensors
        with without_autocast(gradient.device):
            ctx.take(saved, gradient)
        return gradient, None, None, None
