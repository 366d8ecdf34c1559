"""Layers whose per-example gradients are taken from a whole batch, and the patches that take them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailora.signals.elementwise.functions import LinearTap, TableTap, Tap, spark
from tailora.signals.elementwise.slots import Frame, Slot

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
"""From a method to the one that takes its place."""
Slots = Mapping[nn.Parameter, Slot]
_MISSING = object()


@dataclass(frozen=True)
class Leaf:
    """One module whose trainable parameters a rule covers.

    Attributes:
        name: The module's name.
        slots: Slots of the parameters that it covers.
        patches: Module, attribute and what takes the attribute's place.
        covers: Modules inside that need no leaf of their own.
    """

    name: str
    slots: tuple[Slot, ...]
    patches: tuple[tuple[nn.Module, str, Wrap], ...]
    covers: tuple[nn.Module, ...] = ()


def linear_leaf(name: str, module: nn.Module, slots: Slots, frame: Frame) -> Leaf | None:
    """Cover ``nn.Linear``: the factors of LoRA, classifier heads, projections.

    Args:
        name: The module's name.
        module: Any module.
        slots: Wanted parameters.
        frame: The current batch.

    Returns:
        The leaf, or ``None`` where the module is no plain linear layer.
    """
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        return None
    return _affine_leaf(name, module, slots, frame, transposed=False)


def conv1d_leaf(name: str, module: nn.Module, slots: Slots, frame: Frame) -> Leaf | None:
    """Cover GPT-2's ``Conv1D``, a linear layer whose weight lies ``(in, out)``.

    Args:
        name: The module's name.
        module: Any module.
        slots: Wanted parameters.
        frame: The current batch.

    Returns:
        The leaf, or ``None`` where the module is none.
    """
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, Conv1D) or type(module).forward is not Conv1D.forward:
        return None
    return _affine_leaf(name, module, slots, frame, transposed=True)


def _affine_leaf(name: str, module: nn.Module, slots: Slots, frame: Frame, *, transposed: bool) -> Leaf | None:
    """Cover a weight and a bias; ``transposed`` says that the weight lies ``(in, out)``."""
    layer: Any = module
    weight, bias = slots.get(layer.weight), slots.get(layer.bias)

    def take(x: Tensor, gradient: Tensor) -> None:
        rows = frame.by_example(name, x)
        if rows is None:
            return
        gradients = gradient.reshape(frame.size, -1, gradient.shape[-1])
        if weight is not None:
            weight.add_product(*((rows, gradients) if transposed else (gradients, rows)))
        if bias is not None:
            bias.add_dense(gradients.to(bias.dtype).sum(dim=1))

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        # The parameter's name is the original's: callers may give it by keyword.
        def apply(x: Tensor) -> Tensor:
            matrix = layer.weight.t() if transposed else layer.weight
            y = LinearTap.apply(x, matrix, layer.bias, spark(x), take, weight is not None)
            return y  # type: ignore[no-any-return]

        def linear(input: Tensor) -> Tensor:
            return apply(input)

        return apply if transposed else linear

    return _leaf(name, (weight, bias), ((module, "forward", wrap),))


def embedding_leaf(name: str, module: nn.Module, slots: Slots, frame: Frame) -> Leaf | None:
    """Cover ``nn.Embedding``, also the one that holds virtual tokens of prompt and prefix tuning.

    Args:
        name: The module's name.
        module: Any module.
        slots: Wanted parameters.
        frame: The current batch.

    Returns:
        The leaf, or ``None`` where the module is no plain table.
    """
    if not isinstance(module, nn.Embedding) or type(module).forward is not nn.Embedding.forward:
        return None
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse or module.weight not in slots:
        return None
    layer: Any = module
    slot = slots[layer.weight]
    slot.swapped = False

    def take(rows: Tensor, gradient: Tensor) -> None:
        add_table(slot, frame, name, rows, gradient, module.padding_idx)

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(input: Tensor) -> Tensor:
            return TableTap.apply(input, module.weight, spark(module.weight), take)  # type: ignore[no-any-return]

        return forward

    return _leaf(name, (slot,), ((module, "forward", wrap),))


def norm_leaf(name: str, module: nn.Module, slots: Slots, frame: Frame) -> Leaf | None:
    """Cover ``nn.LayerNorm`` over the last axis, ``y = w * normal(x) + b``.

    Args:
        name: The module's name.
        module: Any module.
        slots: Wanted parameters.
        frame: The current batch.

    Returns:
        The leaf, or ``None`` where the module is no plain layer norm with a weight.
    """
    if not isinstance(module, nn.LayerNorm) or type(module).forward is not nn.LayerNorm.forward:
        return None
    layer: Any = module
    if len(layer.normalized_shape) != 1 or layer.weight is None:
        return None
    weight, bias = slots.get(layer.weight), slots.get(layer.bias)

    def take(normal: Tensor, gradient: Tensor) -> None:
        rows = frame.by_example(name, normal)
        if rows is None:
            return
        gradients = gradient.reshape(frame.size, -1, gradient.shape[-1])
        if weight is not None:
            weight.add_dense((gradients.to(weight.dtype) * rows.to(weight.dtype)).sum(dim=1))
        if bias is not None:
            bias.add_dense(gradients.to(bias.dtype).sum(dim=1))

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        # The parameter's name is the original's: callers may give it by keyword.
        def forward(input: Tensor) -> Tensor:
            y = original(input)
            with torch.no_grad():
                normal = F.layer_norm(input, layer.normalized_shape, eps=layer.eps)
            return Tap.apply(y, normal, spark(y), take)  # type: ignore[no-any-return]

        return forward

    return _leaf(name, (weight, bias), ((module, "forward", wrap),))


def add_table(slot: Slot, frame: Frame, name: str, rows: Tensor, gradient: Tensor, unused: int | None) -> None:
    """Add the gradient of a look-up to a slot.

    Args:
        slot: Of the table, rows first.
        frame: The current batch.
        name: Whose table it is.
        rows: Row numbers, ``[n, ...]``.
        gradient: ``[n, ..., width]``.
        unused: A row that gets no gradient (``padding_idx``).
    """
    numbers = frame.by_example(name, rows, keep=0)
    if numbers is None:
        return
    gradients = gradient.reshape(frame.size, -1, gradient.shape[-1])
    if unused is not None:
        gradients = torch.where((numbers == unused)[..., None], 0, gradients)
    slot.add_rows(numbers, gradients)


@contextlib.contextmanager
def patched(leaves: list[Leaf]) -> Iterator[None]:
    """Put the leaves' methods in place for a while.

    Args:
        leaves: What is patched.

    Yields:
        Nothing; every attribute is as before afterwards, also after an error.
    """
    with contextlib.ExitStack() as stack:
        for leaf in leaves:
            for module, attribute, wrap in leaf.patches:
                if attribute == "forward" and "_old_forward" in module.__dict__:
                    # accelerate moves data between devices in `forward` and calls this one.
                    attribute = "_old_forward"
                before = module.__dict__.get(attribute, _MISSING)
                stack.callback(_restore, module, attribute, before)
                object.__setattr__(module, attribute, wrap(getattr(module, attribute)))
        yield


def _restore(module: nn.Module, attribute: str, before: Any) -> None:
    """Give one attribute back."""
    if before is _MISSING:
        module.__dict__.pop(attribute, None)
    else:
        object.__setattr__(module, attribute, before)


def _leaf(name: str, slots: tuple[Slot | None, ...], patches: tuple[tuple[nn.Module, str, Wrap], ...]) -> Leaf | None:
    """Return a leaf, or ``None`` where none of the parameters is wanted."""
    wanted = tuple(slot for slot in slots if slot is not None)
    return Leaf(name, wanted, patches) if wanted else None
