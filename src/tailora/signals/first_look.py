"""What the first backward pass shows of a model whose layers are not used in the plain way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tailora.errors import ProfileError
from tailora.targets import Target


def refuse_dead(
    model: nn.Module, targets: Sequence[Target], uncalled: Sequence[int], losses: Callable[[], Tensor]
) -> None:
    """Refuse a target whose weight the model reads without calling the layer: a LoRA there would have no effect.

    A layer that is not called at all, such as an expert that no token went to, is left in peace.

    Args:
        model: The model.
        targets: The targets.
        uncalled: Those whose layer a pass never called.
        losses: Runs the model on some examples and returns their losses.

    Raises:
        ProfileError: The loss has a gradient at such a weight.
    """
    found: list[tuple[str, Any]] = [
        (targets[index].name, getattr(model.get_submodule(targets[index].name), "weight", None)) for index in uncalled
    ]
    weights = {name: weight for name, weight in found if isinstance(weight, Tensor) and weight.is_floating_point()}
    weights = {name: weight for name, weight in weights.items() if weight.is_leaf and not weight.is_meta}
    if not weights:
        return
    called: set[str] = set()
    # A layer that chance left out of the first pass (LayerDrop) may be called in this one.
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.add(name)) for name in weights
    ]
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        total = losses().sum()
        every = list(weights.values())
        grads = torch.autograd.grad(total, every, allow_unused=True) if total.requires_grad else [None] * len(every)
    finally:
        for hook in hooks:
            hook.remove()
        for weight in weights.values():
            weight.requires_grad_(False)
    reached = [name for name, grad in zip(weights, grads, strict=True) if grad is not None]
    dead = next((name for name in reached if name not in called), None)
    if dead is not None:
        raise ProfileError(
            f"the model reads the weight of {dead!r} without calling that layer, so that a LoRA on it would have no "
            f"effect; exclude it, as with placement 'all-linear & !regex:{dead.rpartition('.')[2]}$'"
        )


class Draws:
    """The random state before a pass, so that it can be taken again with the same dropout."""

    def __init__(self) -> None:
        """Remember it."""
        self._host = torch.get_rng_state()
        self._devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def again(self) -> None:
        """Put it back."""
        torch.set_rng_state(self._host)
        if self._devices:
            torch.cuda.set_rng_state_all(self._devices)
