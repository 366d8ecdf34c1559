"""Which layers get which part, what that costs, and which models are refused."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from tailora.bottleneck.places import module_rule
from tailora.errors import UserError
from tailora.targets import Target, find_targets
from tailora.unipelt.attention import IMPLEMENTATIONS, own_config
from tailora.unipelt.config import UniPELTConfig


@dataclass(frozen=True)
class Place:
    """One layer that gets a part.

    Attributes:
        name: The layer's full name.
        role: ``attention.query``, ``attention.value`` or ``ffn.down``.
        inputs: Its input width.
        outputs: Its output width.
        attention: Full name of its block's attention module, whose direct child the query projection is.
        keys: Width of the block's keys (and values), all heads together.
    """

    name: str
    role: str
    inputs: int
    outputs: int
    attention: str
    keys: int


def find_places(model: nn.Module) -> dict[str, Place]:
    """Return every layer of a model that UniPELT has a part for.

    Args:
        model: A base model without adapters.

    Returns:
        Full module name to place, in the model's order.

    Raises:
        UserError: The architecture is none that UniPELT knows to enter.
    """
    targets = [target for target in find_targets(model) if target.depth is not None]
    kind = type(model).__name__
    crossing = next((target.name for target in targets if target.cross_attention), None)
    if crossing is not None:
        raise UserError(f"{kind} has cross-attention ({crossing!r}), for which UniPELT is not defined; use LoRA")
    blocks: dict[tuple[str, int | None], dict[str, list[Target]]] = {}
    for target in targets:
        blocks.setdefault((target.stack, target.depth), {}).setdefault(target.role, []).append(target)
    places: dict[str, Place] = {}
    for (_, depth), roles in blocks.items():
        for role in ("attention.query", "attention.key", "attention.value", "ffn.down"):
            found = roles.get(role, [])
            if len(found) != 1 or found[0].kind != "linear":
                count = sum(one.kind == "linear" for one in found)
                raise UserError(
                    f"block {depth} of {kind} has {count} linear layers of the role {role} where UniPELT needs one; "
                    "use another method, such as LoRA"
                )
        query, key, value, down = (
            roles[role][0] for role in ("attention.query", "attention.key", "attention.value", "ffn.down")
        )
        attention = query.name.rpartition(".")[0]
        if {attention} != {target.name.rpartition(".")[0] for target in (key, value)} or key.shape[0] != value.shape[0]:
            raise UserError(
                f"keys and values of {attention!r} have no common width and place; UniPELT's prefix needs that"
            )
        _check_attention(attention, model.get_submodule(attention))
        for target in (query, value, down):
            outputs, inputs = target.shape
            places[target.name] = Place(target.name, target.role, inputs, outputs, attention, key.shape[0])
    if not places:
        raise UserError(f"{kind} has no transformer blocks that UniPELT knows; use LoRA")
    _check_config(kind, getattr(model, "config", None))
    return places


def _check_attention(name: str, attention: Any) -> None:
    """Refuse attention that does not call a function which another can take the place of."""
    forward = inspect.unwrap(type(attention).forward)
    known = "ALL_ATTENTION_FUNCTIONS" in forward.__code__.co_names and "eager_attention_forward" in forward.__globals__
    # A bias per pair of positions has none for a prefix.
    biased = "position_bias" in forward.__code__.co_varnames
    masked = "attention_mask" in inspect.signature(forward).parameters
    if not known or biased or not masked or not hasattr(attention, "config"):
        raise UserError(
            f"{name!r} is a {type(attention).__name__}, whose keys and values UniPELT's prefix cannot join; use an "
            "architecture with transformers' attention interface, or another method"
        )
    used = own_config(attention)._attn_implementation
    if used not in IMPLEMENTATIONS:
        raise UserError(
            f"attention is computed by {used!r}; load the model with attn_implementation='sdpa' for UniPELT"
        )


def _check_config(kind: str, config: Any) -> None:
    """Refuse what would cut sequences apart."""
    if getattr(config, "chunk_size_feed_forward", 0):
        raise UserError(
            f"{kind} cuts sequences at chunk_size_feed_forward={config.chunk_size_feed_forward}, which UniPELT's gates "
            "cannot span; set it to 0"
        )


def resolve(config: UniPELTConfig, model: nn.Module, places: dict[str, Place]) -> UniPELTConfig:
    """Return a configuration that says what the given one means for a model.

    Args:
        config: The configuration; it is left as it is.
        model: The base model without adapters.
        places: Its places.

    Returns:
        A copy with ``target_modules`` and ``gate`` decided.

    Raises:
        UserError: Modules were named that UniPELT has no part for, or a causal model shall have ``sequence`` gates.
    """
    causal = [p.attention for p in places.values() if getattr(model.get_submodule(p.attention), "is_causal", True)]
    if causal and config.gate == "sequence":
        raise UserError(
            f"gate='sequence' takes the mean over all tokens, but {causal[0]!r} is causal and must not see later ones; "
            "use gate='token' or leave it at 'auto'"
        )
    gate = config.gate if config.gate != "auto" else "token" if causal else "sequence"
    wanted: Any = [place for place in places.values() if place.role in config.roles]
    if config.target_modules is None:
        return dataclasses.replace(config, target_modules=module_rule(wanted), gate=gate)
    fitting = {place.name for place in wanted}
    for name, _ in model.named_modules():
        if name and check_target_module_exists(config, name) and name not in fitting:
            raise UserError(
                f"target_modules names {name!r}, which UniPELT has no part for; its places are "
                f"{', '.join(config.roles)}"
            )
    return dataclasses.replace(config, gate=gate)


def unipelt_parameters(model: nn.Module, config: UniPELTConfig) -> int:
    """Return how many adapter parameters a configuration trains, without building them.

    ``modules_to_save`` are not counted.

    Args:
        model: A base model without adapters.
        config: The adapters' configuration; it is left as it is.

    Returns:
        Trainable adapter parameters.

    Raises:
        UserError: UniPELT does not fit the model.
    """
    places = find_places(model)
    resolved = resolve(config, model, places)
    chosen = [place for name, place in places.items() if check_target_module_exists(resolved, name)]
    return sum(_parameters_of(place, resolved) for place in chosen)


def _parameters_of(place: Place, config: UniPELTConfig) -> int:
    """Return what the parts of one layer train."""
    if place.role == "ffn.down":
        size = config.size_of(place.outputs)
        return 2 * place.outputs * size + size + place.outputs + place.outputs + 1
    total = 0
    if config.lora_rank:
        total += config.lora_rank * (place.inputs + place.outputs) + place.inputs + 1
    if place.role == "attention.query" and config.prefix_length:
        hidden, both = config.prefix_projection, 2 * place.keys
        total += place.inputs + 1
        if hidden is None:
            total += config.prefix_length * both
        else:
            total += config.prefix_length * place.inputs + (place.inputs + 1) * hidden + (hidden + 1) * both
    return total
