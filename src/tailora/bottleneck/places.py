"""Which layers an adapter stands behind, and what that costs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from tailora.bottleneck.config import BottleneckConfig
from tailora.errors import UserError
from tailora.targets import Target, find_targets

ROLES = {"houlsby": ("attention.output", "ffn.down"), "pfeiffer": ("ffn.down",)}
"""Placement to the roles of the layers that it follows."""


def places(targets: Sequence[Target], placement: str) -> list[Target]:
    """Return the layers that a placement puts adapters behind.

    Args:
        targets: All targets of one model.
        placement: ``houlsby`` or ``pfeiffer``.

    Returns:
        The layers inside the blocks, in the order of ``targets``; self-attention and cross-attention alike.

    Raises:
        UserError: The model has no such layer, or has it only as a tensor of fused experts.
    """
    inside = [target for target in targets if target.depth is not None]
    found = [target for target in inside if target.role in ROLES[placement]]
    for target in found:
        if target.kind not in ("linear", "conv1d"):
            raise UserError(
                f"placement {placement!r} puts an adapter behind {target.name!r}, a tensor of {target.experts} fused "
                "experts whose outputs no layer returns; name the modules to follow with target_modules"
            )
    for role in ROLES[placement]:
        if not any(target.role == role for target in found):
            raise UserError(
                f"placement {placement!r} needs layers of the role {role}, of which this model has none; name the "
                "modules to follow with target_modules"
            )
    return found


def module_rule(chosen: Sequence[Target]) -> str:
    """Return the expression that matches the full names of some layers and nothing else.

    Args:
        chosen: The layers.

    Returns:
        A regular expression for peft's ``target_modules``.  Of a list, peft keeps no order and shortens long ones.
    """
    return "|".join(re.escape(target.name) for target in chosen)


def bottleneck_sizes(source: nn.Module | Sequence[Target], config: BottleneckConfig) -> dict[str, int]:
    """Return the bottleneck size behind every layer that gets an adapter.

    Args:
        source: A base model without adapters, or its targets.
        config: The adapters' configuration; it is left as it is.

    Returns:
        Module name to size m, in the model's order.

    Raises:
        UserError: The placement does not fit the model.
    """
    return {target.name: config.size_of(target.name, target.shape[0]) for target in _chosen(source, config)}


def bottleneck_parameters(source: nn.Module | Sequence[Target], config: BottleneckConfig) -> int:
    """Return how many adapter parameters a configuration trains, without building them.

    An adapter of size m behind a layer of output width d has ``2 d m + m + d`` parameters: two projections and their
    biases (``2 d`` more with a layer norm).  ``modules_to_save`` are not counted.

    Args:
        source: A base model without adapters, or its targets.
        config: The adapters' configuration; it is left as it is.

    Returns:
        Trainable adapter parameters.

    Raises:
        UserError: The placement does not fit the model.
    """
    return sum(config.parameters_of(target.name, target.shape[0]) for target in _chosen(source, config))


def _chosen(source: nn.Module | Sequence[Target], config: BottleneckConfig) -> list[Target]:
    """Return the layers that get an adapter, by placement or by peft's own matching."""
    targets = find_targets(source) if isinstance(source, nn.Module) else source
    if config.target_modules is None:
        config = dataclasses.replace(config, target_modules=module_rule(places(targets, config.placement)))
    layers = [target for target in targets if target.kind in ("linear", "conv1d")]
    return [target for target in layers if check_target_module_exists(config, target.name)]
