"""A linear layer with the parts of UniPELT that belong to it."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import ACT2FN

from tailora.bottleneck.unmergeable import Unmergeable
from tailora.errors import UserError, unknown_name
from tailora.unipelt.attention import Share
from tailora.unipelt.config import UniPELTConfig
from tailora.unipelt.places import Place

NO_MERGE = (
    "UniPELT's gates and its prefix depend on the input, so it cannot be merged into weights; keep it beside the "
    "model, or take it off with unload()"
)


class UniPELTLayer(Unmergeable, nn.Module, BaseTunerLayer):
    """``y + gate * part`` with ``y = base_layer(x)``; the part is LoRA's or the adapter's.

    Around a query projection it also makes the block's prefix, with a gate of its own.

    Args:
        base_layer: A linear layer, or a peft layer around one.
        adapter_name: Name of the first adapter.
        config: What it is made of, its gate decided.
        place: Which layer this is.
        share: Of the block.
    """

    why_not = NO_MERGE
    adapter_layer_names = (
        "unipelt_a",
        "unipelt_b",
        "unipelt_down",
        "unipelt_up",
        "unipelt_gate",
        "unipelt_prefix",
        "unipelt_prefix_in",
        "unipelt_prefix_out",
        "unipelt_prefix_gate",
    )
    other_param_names = ("unipelt_activation", "gate_kind")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: UniPELTConfig, place: Place, share: Share
    ) -> None:
        """Wrap the layer and make the first adapter."""
        super().__init__()
        self.base_layer = base_layer
        self.unipelt_a = nn.ModuleDict()
        self.unipelt_b = nn.ModuleDict()
        self.unipelt_down = nn.ModuleDict()
        self.unipelt_up = nn.ModuleDict()
        self.unipelt_gate = nn.ModuleDict()
        self.unipelt_prefix = nn.ModuleDict()
        self.unipelt_prefix_in = nn.ModuleDict()
        self.unipelt_prefix_out = nn.ModuleDict()
        self.unipelt_prefix_gate = nn.ModuleDict()
        self.unipelt_activation = nn.ModuleDict()
        self.gate_kind: dict[str, str] = {}
        self.merged_adapters: list[str] = []
        self.place, self.share = place, share
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: UniPELTConfig) -> None:
        """Make an adapter, drawing its weights from the global random state as peft does.

        Args:
            adapter_name: Its name; an adapter of this name is replaced.
            config: What it is made of, its gate decided.

        Raises:
            UserError: There is no such activation, or it trains.
        """
        for held in (*self.adapter_layer_names, *self.other_param_names):
            if adapter_name in getattr(self, held):
                del getattr(self, held)[adapter_name]
        self.gate_kind[adapter_name] = config.gate
        first, place = config.init_weights, self.place
        if place.role == "ffn.down":
            size = config.size_of(place.outputs)
            self.unipelt_activation[adapter_name] = check_activation(config.activation)
            self.unipelt_down[adapter_name] = _down(nn.Linear(place.outputs, size), first)
            self.unipelt_up[adapter_name] = _zero(nn.Linear(size, place.outputs), first)
            self.unipelt_gate[adapter_name] = _near_a_half(nn.Linear(place.outputs, 1), first)
        elif config.lora_rank:
            self.unipelt_a[adapter_name] = _down(nn.Linear(place.inputs, config.lora_rank, bias=False), first)
            self.unipelt_b[adapter_name] = _zero(nn.Linear(config.lora_rank, place.outputs, bias=False), first)
            self.unipelt_gate[adapter_name] = _near_a_half(nn.Linear(place.inputs, 1), first)
        if place.role == "attention.query" and config.prefix_length:
            hidden, both = config.prefix_projection, 2 * place.keys
            # As PyTorch draws them: tables from Normal(0, 1).
            self.unipelt_prefix[adapter_name] = nn.Embedding(config.prefix_length, both if not hidden else place.inputs)
            if hidden:
                self.unipelt_prefix_in[adapter_name] = nn.Linear(place.inputs, hidden)
                self.unipelt_prefix_out[adapter_name] = nn.Linear(hidden, both)
            self.unipelt_prefix_gate[adapter_name] = _near_a_half(nn.Linear(place.inputs, 1), first)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output with the active adapter's addition.

        Args:
            x: The layer's input, ``[n, t, in]``.
            *args: Handed to the base layer.
            **kwargs: Handed to the base layer.

        Returns:
            ``[n, t, out]`` in the dtype of the base layer's output.

        Raises:
            UserError: Several adapters are active, or the input's shape has no gate.
        """
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if self.place.role == "attention.query":
            # What a recomputation that stopped early, or a failed pass, may have left.
            self.share.prefix = None
        name = None if self.disable_adapters else self._active()
        if name is None:
            return y
        result = y
        if name in self.unipelt_prefix:
            gate = self._gate(self.unipelt_prefix_gate[name], x, name)
            self.share.prefix = (self._prefix(name, len(x)), gate[..., 0])
        if name in self.unipelt_a:
            low = self.unipelt_a[name]
            part = self.unipelt_b[name](low(self._cast_input_dtype(x, low.weight.dtype)))  # type: ignore[arg-type]
            result = y + part * self._gate(self.unipelt_gate[name], x, name)
        elif name in self.unipelt_down:
            down = self.unipelt_down[name]
            inner = down(self._cast_input_dtype(y, down.weight.dtype))  # type: ignore[arg-type]
            part = self.unipelt_up[name](self.unipelt_activation[name](inner))
            result = y + part * self._gate(self.unipelt_gate[name], y, name)
        return result.to(y.dtype)

    def _active(self) -> str | None:
        """Return the one active adapter that has a part here."""
        names = [name for name in self.active_adapters if name in self.gate_kind]
        if len(names) > 1:
            raise UserError(f"UniPELT adapters {names} are active together; activate one with set_adapter")
        return names[0] if names else None

    def _prefix(self, name: str, size: int) -> Tensor:
        """Return a prefix's keys and values ``[n, length, 2, width]``.

        They are made anew for every example, so that each has gradients of its own.
        """
        table: Any = self.unipelt_prefix[name]
        found: Tensor = table(torch.arange(table.num_embeddings, device=table.weight.device).expand(size, -1))
        if name in self.unipelt_prefix_in:
            found = self.unipelt_prefix_out[name](torch.tanh(self.unipelt_prefix_in[name](found)))
        return found.unflatten(-1, (2, self.place.keys))

    def _gate(self, gate: nn.Module, x: Tensor, name: str) -> Tensor:
        """Return a gate's values, ``[n, t, 1]`` or, the mean over real tokens, ``[n, 1, 1]``."""
        weight: Any = gate.weight
        values = torch.sigmoid(gate(self._cast_input_dtype(x, weight.dtype)))
        if self.gate_kind[name] == "token" and (x.ndim == 3 or self.place.role != "attention.query"):
            return values
        if x.ndim != 3:
            raise UserError(f"the input of {self.place.name!r} is {list(x.shape)}; UniPELT's gates need [n, t, width]")
        real = self.share.real
        if real is None:
            return values.mean(dim=1, keepdim=True)
        if real.shape[1] != x.shape[1]:
            raise UserError(
                f"{self.place.name!r} sees {x.shape[1]} positions under a mask of {real.shape[1]}; UniPELT's mean over "
                "a sequence needs all at once"
            )
        counted = real[..., None].to(values.dtype)
        return (values * counted).sum(dim=1, keepdim=True) / counted.sum(dim=1, keepdim=True).clamp(min=1)


def check_activation(name: str) -> nn.Module:
    """Return an activation, or refuse it.

    Args:
        name: A name of transformers' ``ACT2FN``.

    Returns:
        The activation.

    Raises:
        UserError: There is no such activation, or it trains.
    """
    if name not in ACT2FN:
        raise unknown_name("activation", name, ACT2FN)
    activation: nn.Module = ACT2FN[name]
    if any(True for _ in activation.parameters()):
        raise UserError(f"activation {name!r} has parameters of its own; use one without, such as 'relu'")
    return activation


def _down(layer: nn.Linear, first: bool) -> nn.Linear:
    """Draw a down projection as LoRA's A; not ``first`` keeps what PyTorch drew."""
    if first:
        nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
        _no_bias(layer)
    return layer


def _zero(layer: nn.Linear, first: bool) -> nn.Linear:
    """Let an up projection begin at zero."""
    if first:
        nn.init.zeros_(layer.weight)
        _no_bias(layer)
    return layer


def _near_a_half(layer: nn.Linear, first: bool) -> nn.Linear:
    """Let a gate begin near a half."""
    if first:
        nn.init.normal_(layer.weight, std=0.02)
        _no_bias(layer)
    return layer


def _no_bias(layer: nn.Linear) -> None:
    """Set a bias to zero where there is one."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
