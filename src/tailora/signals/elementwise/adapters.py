"""peft's parameters outside of linear layers: embeddings, DoRA's magnitudes, IA3's vectors, virtual tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailora.signals.elementwise.functions import TableTap, Tap, spark
from tailora.signals.elementwise.leaves import Leaf, Slots, add_table
from tailora.signals.elementwise.slots import Frame, Slot

Forward = Callable[..., Any]


def _active(module: Any, held: Any) -> str | None:
    """Return the one active adapter of a peft layer, or ``None`` where there are several or none."""
    names = [name for name in module.active_adapters if name in held]
    if len(names) != 1 or module.disable_adapters or module.merged:
        return None
    return names[0]


def _take_scale(name: str, slot: Slot, frame: Frame) -> Callable[[Tensor, Tensor], None]:
    """Return what adds the gradient of a vector that multiplies a tensor: their product, summed over positions."""

    def take(unscaled: Tensor, gradient: Tensor) -> None:
        rows = frame.by_example(name, unscaled)
        if rows is not None:
            gradients = gradient.reshape(frame.size, -1, gradient.shape[-1]).to(slot.dtype)
            slot.add_dense((gradients * rows.to(slot.dtype)).sum(dim=1))

    return take


def lora_embedding_leaf(name: str, module: nn.Module, slots: Slots, frame: Frame) -> Leaf | None:
    """Cover peft's LoRA on an embedding: ``y = E[x] + s (A^T)[x] B^T``.

    Args:
        name: The module's name.
        module: Any module.
        slots: Wanted parameters.
        frame: The current batch.

    Returns:
        The leaf, or ``None`` where the module is none, or is a variant such as DoRA.
    """
    from peft.tuners.lora.layer import Embedding

    if not isinstance(module, Embedding):
        return None
    layer: Any = module
    adapter = _active(layer, layer.lora_embedding_A)
    base = layer.get_base_layer()
    if adapter is None or adapter in layer.lora_variant or base.max_norm is not None or base.scale_grad_by_freq:
        return None
    slot_a = slots.get(layer.lora_embedding_A[adapter])
    slot_b = slots.get(layer.lora_embedding_B[adapter])
    wanted = tuple(slot for slot in (slot_a, slot_b) if slot is not None)
    if not wanted:
        return None
    if slot_a is not None:
        # A is (rank, vocabulary): its columns are what is looked up.
        slot_a.swapped = True
    looked_up: list[Tensor] = []

    def take_a(rows: Tensor, gradient: Tensor) -> None:
        if slot_a is not None:
            add_table(slot_a, frame, f"{name}.lora_embedding_A", rows, gradient, base.padding_idx)

    def take_b(after: Tensor, gradient: Tensor) -> None:
        rows = frame.by_example(f"{name}.lora_embedding_B", after)
        if rows is None or slot_b is None:
            return
        scale = layer.scaling[adapter]
        embed_scale = layer._get_embed_scale()
        gradients = gradient.reshape(frame.size, -1, gradient.shape[-1]).to(slot_b.dtype) * scale
        slot_b.add_product(gradients if embed_scale is None else gradients * embed_scale.to(gradients.dtype), rows)

    def wrap_lookup(original: Forward) -> Forward:
        def lookup(input: Tensor, weight: Tensor, input_fn: Any = None, output_fn: Any = None) -> Tensor:
            if input_fn is not None or output_fn is not None:
                return original(input, weight, input_fn=input_fn, output_fn=output_fn)
            after: Tensor = TableTap.apply(input, weight, spark(weight), take_a)  # type: ignore[assignment]
            looked_up[:] = [after.detach()]
            return after

        return lookup

    def wrap(original: Forward) -> Forward:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            looked_up.clear()
            y = original(x, *args, **kwargs)
            return Tap.apply(y, looked_up.pop(), spark(y), take_b) if looked_up else y  # type: ignore[no-any-return]

        return forward

    return Leaf(name, wanted, ((module, "_embed", wrap_lookup), (module, "forward", wrap)))


def dora_leaf(name: str, module: nn.Module, slots: Slots, frame: Frame) -> Leaf | None:
    """Cover DoRA's magnitude on a linear layer.

    The layer adds ``(m/c - 1) W x + (m/c) s B A x``, so the derivative by ``m`` is ``(what it adds + W x) / m``.

    Args:
        name: The module's name.
        module: Any module.
        slots: Wanted parameters.
        frame: The current batch.

    Returns:
        The leaf, or ``None`` where the module is none.
    """
    from peft.tuners.lora.dora import DoraLinearLayer
    from peft.utils.integrations import dequantize_module_weight
    from peft.utils.other import transpose

    if type(module) is not DoraLinearLayer or module.weight not in slots:
        return None
    layer: Any = module
    slot = slots[layer.weight]

    take = _take_scale(name, slot, frame)

    def wrap(original: Forward) -> Forward:
        def forward(x: Tensor, *, base_layer: Any, base_result: Tensor | None = None, **kwargs: Any) -> Tensor:
            y = original(x, base_layer=base_layer, base_result=base_result, **kwargs)
            with torch.no_grad():
                if base_result is None:
                    weight = dequantize_module_weight(base_layer).to(x.dtype)
                    base_result = F.linear(x, transpose(weight, layer.fan_in_fan_out))
                elif base_layer.bias is not None:
                    base_result = base_result - base_layer.bias
                # A magnitude of 0 gives no number here; such a batch is taken one example at a time.
                direction = (y + base_result) / layer.weight
            return Tap.apply(y, direction, spark(y), take)  # type: ignore[no-any-return]

        return forward

    return Leaf(name, (slot,), ((module, "forward", wrap),))


def ia3_leaf(name: str, module: nn.Module, slots: Slots, frame: Frame) -> Leaf | None:
    """Cover IA3's vector on a linear layer, which multiplies the layer's input or its output.

    Args:
        name: The module's name.
        module: Any module.
        slots: Wanted parameters.
        frame: The current batch.

    Returns:
        The leaf, or ``None`` where the module is none.
    """
    from peft.tuners.ia3.layer import Linear

    if not isinstance(module, Linear):
        return None
    layer: Any = module
    adapter = _active(layer, layer.ia3_l)
    if adapter is None or layer.ia3_l[adapter] not in slots:
        return None
    slot = slots[layer.ia3_l[adapter]]
    unscaled: list[Tensor] = []

    take = _take_scale(name, slot, frame)

    def wrap_base(original: Forward) -> Forward:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if layer.is_feedforward and unscaled:
                x = Tap.apply(x, unscaled.pop(), spark(x), take)  # type: ignore[assignment]
                return original(x, *args, **kwargs)
            y = original(x, *args, **kwargs)
            unscaled[:] = [y.detach()]
            return y

        return forward

    def wrap(original: Forward) -> Forward:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            unscaled[:] = [x.detach()] if layer.is_feedforward else []
            y = original(x, *args, **kwargs)
            if not layer.is_feedforward and unscaled:
                y = Tap.apply(y, unscaled.pop(), spark(y), take)  # type: ignore[assignment]
            return y

        return forward

    return Leaf(name, (slot,), ((layer.get_base_layer(), "forward", wrap_base), (module, "forward", wrap)))


def prompt_leaf(name: str, module: nn.Module, slots: Slots, frame: Frame) -> Leaf | None:
    """Cover prompt tuning's virtual tokens, which are looked up once and then repeated for every example.

    Args:
        name: The module's name.
        module: Any module.
        slots: Wanted parameters.
        frame: The current batch.

    Returns:
        The leaf, or ``None`` where the module is no model with a prompt that trains.
    """
    from peft import PeftModel, PromptEmbedding

    if not isinstance(module, PeftModel) or not module.active_peft_config.is_prompt_learning:
        return None
    model: Any = module
    encoder = model.prompt_encoder[model.active_adapter]
    if type(encoder) is not PromptEmbedding or encoder.embedding.weight not in slots:
        return None
    held: Any = encoder.embedding
    slot = slots[held.weight]

    def take(prompts: Tensor, gradient: Tensor) -> None:
        if len(prompts) == frame.size and prompts.shape[1:] == slot.parameter.shape:
            frame.by_example(slot.name, prompts)
            slot.add_dense(gradient)
        else:
            frame.problem = frame.problem or f"{slot.name} makes prompts of the shape {list(prompts.shape)}"

    def wrap(original: Forward) -> Forward:
        def get_prompt(*args: Any, **kwargs: Any) -> Tensor:
            prompts = original(*args, **kwargs)
            return Tap.apply(prompts, prompts.detach(), spark(prompts), take)  # type: ignore[no-any-return]

        return get_prompt

    return Leaf(name, (slot,), ((module, "get_prompt", wrap),), covers=(encoder.embedding,))
