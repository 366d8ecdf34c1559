"""The tuner that puts UniPELT into a model: peft's ``BaseTuner`` with Tailora's targets."""

from __future__ import annotations

from typing import Any

from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from tailora.bottleneck.model import bare
from tailora.errors import UserError
from tailora.unipelt.attention import release, share_of
from tailora.unipelt.config import UniPELTConfig
from tailora.unipelt.layer import NO_MERGE, UniPELTLayer, check_activation
from tailora.unipelt.places import find_places, resolve


class UniPELTModel(BaseTuner):
    """A model with UniPELT adapters; made by ``peft.get_peft_model`` from a ``UniPELTConfig``."""

    prefix = "unipelt_"
    tuner_layer_cls = UniPELTLayer
    # The layers are found by their role, which works for any architecture whose names are known.
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - peft declares it so

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> PeftConfig:
        """Decide what the configuration means for this model, in a copy, or refuse before anything is changed."""
        config: UniPELTConfig = peft_config
        check_activation(config.activation)
        with bare(self.model):
            self._places = find_places(self.model)
            resolved = resolve(config, self.model, self._places)
        for name, held in self.peft_config.items():
            if held is peft_config:
                self.peft_config[name] = resolved
        return resolved

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
        """Put the parts of one layer around it, or further ones where there are some already."""
        if isinstance(target, UniPELTLayer):
            target.update_layer(adapter_name, peft_config)
            return
        place = self._places[current_key]
        share = share_of(self.model.get_submodule(place.attention))
        new = UniPELTLayer(target, adapter_name, peft_config, place, share)
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        self._replace_module(parent, target_name, new, target)

    def _check_merge_allowed(self) -> None:
        """Refuse to merge."""
        raise UserError(NO_MERGE)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        """Give attention modules their own configuration back as well."""
        plain = super()._unload_and_optionally_merge(*args, **kwargs)
        release(self.model)
        return plain
