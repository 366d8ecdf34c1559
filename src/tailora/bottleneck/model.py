"""The tuner that puts bottleneck adapters into a model: peft's ``BaseTuner`` with Tailora's targets."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from tailora.bottleneck.config import BottleneckConfig, matches
from tailora.bottleneck.layer import NO_MERGE, BottleneckLayer, output_width
from tailora.bottleneck.places import module_rule, places
from tailora.errors import UserError
from tailora.targets import find_targets


class BottleneckModel(BaseTuner):
    """A model with bottleneck adapters; made by ``peft.get_peft_model`` from a ``BottleneckConfig``."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    # The layers are found by their role, which works for any architecture whose names are known.
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - peft declares it so

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> PeftConfig:
        """Name the modules that the placement means, in a copy: a caller may use one config for several models."""
        if peft_config.target_modules is not None:
            return peft_config
        with bare(self.model):
            chosen = places(find_targets(self.model), peft_config.placement)
        resolved = dataclasses.replace(peft_config, target_modules=module_rule(chosen))
        for name, held in self.peft_config.items():
            if held is peft_config:
                self.peft_config[name] = resolved
        return resolved

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Refuse what cannot work before anything is replaced."""
        config: BottleneckConfig = peft_config
        modules = dict(model.named_modules())
        named = [name for name in modules if name and self._check_target_module_exists(config, name)]
        for name in named:
            layer: Any = modules[name]
            layer = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
            width = output_width(layer)
            if width is None or isinstance(modules.get(name.rpartition(".")[0]), nn.MultiheadAttention):
                raise UserError(
                    f"module {name!r} is a {type(layer).__name__}, which no bottleneck adapter can follow; let "
                    "target_modules name linear layers that the model calls"
                )
            config.size_of(name, width)
        for pattern in config.size_pattern:
            if not any(matches(pattern, name) for name in named):
                raise UserError(
                    f"size_pattern key {pattern!r} matches none of the {len(named)} modules that get an adapter"
                )

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        """Put an adapter behind one layer, or a further one where there is one already."""
        layer: Any = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        size = peft_config.size_of(current_key, output_width(layer))
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config, size)
            return
        new = BottleneckLayer(target, adapter_name, peft_config, size)
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        self._replace_module(parent, target_name, new, target)

    def _check_merge_allowed(self) -> None:
        """Refuse to merge."""
        raise UserError(NO_MERGE)


@contextlib.contextmanager
def bare(model: nn.Module) -> Iterator[None]:
    """Put the base layers of a model's adapter layers in their place for a while.

    Args:
        model: A model, adapted or not.

    Yields:
        Nothing; the adapter layers are back afterwards, also after an error.
    """
    held: list[tuple[nn.Module, str, BaseTunerLayer]] = []
    for name, module in list(model.named_modules()):
        if name and isinstance(module, BaseTunerLayer):
            held.append((model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], module))
    try:
        for parent, last, layer in held:
            setattr(parent, last, layer.get_base_layer())
        yield
    finally:
        for parent, last, layer in held:
            setattr(parent, last, layer)
