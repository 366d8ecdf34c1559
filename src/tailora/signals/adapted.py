"""Models that carry a LoRA, seen as the base models they were made of: the same names, targets and fingerprint."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tailora.errors import UserError
from tailora.fingerprints import model_fingerprint
from tailora.placement import select
from tailora.targets import Target, find_targets


@dataclass(frozen=True)
class Adapted:
    """A model with a LoRA.

    Attributes:
        model: The base model with the LoRA layers in it; modules have the names they had before.
        base: The same modules and weights without any adapter; never called.
        targets: The measured targets, all of which carry a LoRA.
        names: The active adapters.
        fingerprint: Of the weights together with the adapters'.
    """

    model: nn.Module
    base: nn.Module
    targets: tuple[Target, ...]
    names: tuple[str, ...]
    fingerprint: str


def adapted(model: nn.Module, placement: str, targets: Sequence[Target] | None = None) -> Adapted:
    """Look at a model that carries a LoRA.

    Args:
        model: A peft model with LoRA, or a model that LoRA layers were injected into.
        placement: Which targets are measured, of those that carry a LoRA.
        targets: The targets themselves, instead of a placement.

    Returns:
        What is measured.

    Raises:
        UserError: There is no LoRA on any (on each, where they are given) of the targets, it is switched off or merged
            into the weights, or it is of a kind whose output cannot be measured.
    """
    inner = _inner(model)
    carriers = dict(_lora_layers(inner))
    if not carriers:
        raise UserError(
            f"{type(model).__name__} carries no LoRA, whose output 'adapter_output_norm' is the norm of; give the peft "
            "model, after a short training (a fresh LoRA puts out zeros)"
        )
    base = without_adapters(inner)
    found = find_targets(base)
    chosen = tuple(select(found, placement) if targets is None else targets)
    unseen = _out_of_sight(carriers)
    hidden = next((target.name for target in chosen if target.name in unseen), None)
    if hidden is not None:
        raise UserError(
            f"the adapter of {hidden!r} is on an embedding or an expert tensor, whose inputs no hook sees; leave it "
            "out of the placement"
        )
    kept = tuple(target for target in chosen if target.name in carriers)
    if targets is not None and len(kept) < len(chosen):
        bare = next(target.name for target in chosen if target.name not in carriers)
        raise UserError(f"target {bare!r} carries no LoRA, whose output could be measured; leave it out of the targets")
    if not kept:
        raise UserError(f"placement {placement!r} selects no target that carries a LoRA; widen it")
    names: dict[str, None] = {}
    for target in kept:
        names |= dict.fromkeys(active_adapters(carriers[target.name], target.name))
    if not names:
        raise UserError(f"none of the {len(kept)} LoRA layers has an active adapter; call set_adapter first")
    return Adapted(inner, base, kept, tuple(names), model_fingerprint(inner))


def active_adapters(layer: Any, name: str) -> list[str]:
    """Return the adapters that add to a layer's output.

    Args:
        layer: A LoRA layer of peft.
        name: What it is called, for messages.

    Returns:
        Names of the active adapters that this layer has; none is possible.

    Raises:
        UserError: The adapters are switched off or merged, or one is no plain LoRA nor a DoRA.
    """
    if layer.merged:
        raise UserError(f"the adapter of {name!r} is merged into the weights; call unmerge_adapter before profiling")
    if layer.disable_adapters:
        raise UserError(f"the adapters of {name!r} are switched off, so they put out nothing; enable them")
    active = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
    for adapter in active:
        variant = type(layer.lora_variant.get(adapter)).__name__
        if variant not in ("NoneType", "DoraLinearVariant"):
            raise UserError(
                f"adapter {adapter!r} of {name!r} is a {variant}, whose output is not scaling * B A x; measure a plain "
                "LoRA"
            )
    return active


def without_adapters(model: nn.Module) -> nn.Module:
    """Return a copy of a module tree in which adapter layers are replaced by the layers they wrap.

    Modules are copied, tensors are not, and the model is not touched.  The copy is for looking at names, classes,
    shapes and weights, not for calling.

    Args:
        model: The model without peft's own outermost wrappers.

    Returns:
        A tree with the names the base model had.
    """
    return _bare(model, {})


def _bare(module: Any, made: dict[int, nn.Module]) -> nn.Module:
    """Copy one module and what is below it; a module that is in two places stays one."""
    if id(module) in made:
        return made[id(module)]
    wrapped = module
    while (inside := _wrapped(wrapped)) is not None:
        wrapped = inside
    twin = copy.copy(wrapped)
    made[id(module)] = made[id(wrapped)] = twin
    twin._modules = {name: None if child is None else _bare(child, made) for name, child in wrapped._modules.items()}
    return twin


def _wrapped(module: Any) -> nn.Module | None:
    """Return the layer inside of one of peft's wrappers."""
    tuners, other = sys.modules["peft.tuners.tuners_utils"], sys.modules["peft.utils.other"]
    if isinstance(module, tuners.BaseTunerLayer):
        return module.get_base_layer()  # type: ignore[return-value]
    return module.original_module if isinstance(module, other.AuxiliaryTrainingWrapper) else None


def _inner(model: Any) -> nn.Module:
    """Return the model inside of peft's outermost wrappers."""
    peft, tuners = sys.modules.get("peft"), sys.modules.get("peft.tuners.tuners_utils")
    if peft is not None and isinstance(model, peft.PeftModel):
        model = model.base_model
    if tuners is not None and isinstance(model, tuners.BaseTuner):
        model = model.model
    return model


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and layer of every LoRA; looked up, not imported: without peft loaded there can be none."""
    lora = sys.modules.get("peft.tuners.lora.layer")
    if lora is not None:
        yield from ((name, module) for name, module in model.named_modules() if isinstance(module, lora.LoraLayer))


def _out_of_sight(carriers: dict[str, Any]) -> set[str]:
    """Return the names of the targets whose LoRA is not on a linear layer."""
    found = set()
    for name, layer in carriers.items():
        if parameter := getattr(layer, "parameter_name", None):
            # Wrappers of several parameters of one module lie in one another.
            found.add(f"{name.replace('.base_layer', '')}.{parameter}")
        elif isinstance(layer.get_base_layer(), nn.Embedding):
            found.add(name)
    return found
