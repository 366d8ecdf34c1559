"""A layer with bottleneck adapters behind it."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from tailora.bottleneck.config import BottleneckConfig
from tailora.bottleneck.unmergeable import Unmergeable
from tailora.errors import UserError, unknown_name

NO_MERGE = (
    "a bottleneck adapter is not linear in the layer's input, so it cannot be merged into weights; keep it beside the "
    "model, or take it off with unload()"
)


def output_width(layer: nn.Module) -> int | None:
    """Return the output width of a layer that an adapter can stand behind.

    Args:
        layer: Any module.

    Returns:
        The width, or ``None`` where the module is no linear layer (quantised or not) and no ``Conv1D``.
    """
    if isinstance(layer, Conv1D):
        return int(layer.nf)
    width = getattr(layer, "out_features", None)
    return width if isinstance(width, int) and isinstance(getattr(layer, "in_features", None), int) else None


class BottleneckLayer(Unmergeable, nn.Module, BaseTunerLayer):
    """``y + sum_i scaling_i * up_i(act_i(down_i(y)))`` with ``y = base_layer(x)``, over the active adapters.

    Several active adapters stand side by side: each reads the base layer's output.

    Args:
        base_layer: A linear layer, a ``Conv1D``, or a peft layer around one.
        adapter_name: Name of the first adapter.
        config: What it is made of.
        size: Its bottleneck size.
    """

    why_not = NO_MERGE
    adapter_layer_names = ("bottleneck_down", "bottleneck_up", "bottleneck_norm")
    other_param_names = ("bottleneck_activation", "bottleneck_size", "scaling")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig, size: int) -> None:
        """Wrap the layer and make the first adapter."""
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_norm = nn.ModuleDict()
        self.bottleneck_activation = nn.ModuleDict()
        self.bottleneck_size: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        width = output_width(self.get_base_layer())
        if width is None:
            raise UserError(f"a bottleneck adapter cannot follow a {type(self.get_base_layer()).__name__}")
        self.width = width
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, size)

    def update_layer(self, adapter_name: str, config: BottleneckConfig, size: int) -> None:
        """Make an adapter, drawing its weights from the global random state as peft does.

        Args:
            adapter_name: Its name; an adapter of this name is replaced.
            config: What it is made of.
            size: Its bottleneck size.

        Raises:
            UserError: There is no such activation, or it trains.
        """
        if config.activation not in ACT2FN:
            raise unknown_name("activation", str(config.activation), ACT2FN)
        activation = ACT2FN[config.activation]
        if any(True for _ in activation.parameters()):
            raise UserError(
                f"activation {config.activation!r} has parameters of its own; use one without, such as 'relu'"
            )
        down = nn.Linear(self.width, size, bias=config.use_bias)
        up = nn.Linear(size, self.width, bias=config.use_bias)
        _initialise(down, up, config.init_weights)
        self.bottleneck_down[adapter_name] = down
        self.bottleneck_up[adapter_name] = up
        self.bottleneck_activation[adapter_name] = activation
        if adapter_name in self.bottleneck_norm:
            del self.bottleneck_norm[adapter_name]
        if config.layer_norm:
            self.bottleneck_norm[adapter_name] = nn.LayerNorm(self.width)
        self.bottleneck_size[adapter_name] = size
        self.scaling[adapter_name] = config.scaling
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output with the active adapters' additions.

        Args:
            x: The layer's input, ``[..., in]``.
            *args: Handed to the base layer.
            **kwargs: Handed to the base layer.

        Returns:
            ``[..., out]`` in the dtype of the base layer's output.
        """
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        result = y
        for name in self.active_adapters:
            if name not in self.bottleneck_down:
                continue
            down = self.bottleneck_down[name]
            inner = self._cast_input_dtype(y, down.weight.dtype)  # type: ignore[arg-type]
            if name in self.bottleneck_norm:
                inner = self.bottleneck_norm[name](inner)
            inner = self.bottleneck_activation[name](down(inner))
            result = result + self.bottleneck_up[name](inner) * self.scaling[name]
        return result.to(y.dtype)


def _initialise(down: nn.Linear, up: nn.Linear, how: bool | str) -> None:
    """Draw the two projections' weights; ``False`` keeps what PyTorch drew."""
    if how is False:
        return
    if how is True:
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
    for layer in (down, up):
        if how == "bert":
            nn.init.normal_(layer.weight, std=0.02)
        elif how == "houlsby":
            nn.init.trunc_normal_(layer.weight, std=1e-3, a=-2e-3, b=2e-3)
        if layer.bias is not None:
            with torch.no_grad():
                layer.bias.zero_()
