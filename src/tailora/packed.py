"""What quantised layers hold: packed codes and their scales, seen as the weights they stand for.

bitsandbytes keeps 4-bit weights as bytes in a column and torchao as a tensor made of other tensors, so a parameter's
own shape, size and values say less than they do elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from tailora.offloaded import known_parameters


def count_weights(model: nn.Module) -> int:
    """Return the number of weights of a model, counting a 4-bit layer's weights and not its bytes.

    Args:
        model: The model, quantised or not.

    Returns:
        The same number for a model and its quantised copy; shared parameters count once.
    """
    return sum(size_of(parameter) for _, parameter in known_parameters(model))


def stored_tensors(name: str, parameter: nn.Parameter, modules: dict[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield the plain tensors that a parameter consists of.

    Args:
        name: The parameter's name.
        parameter: The parameter.
        modules: The model's modules by name.

    Yields:
        Name and tensor: the parameter itself where it is a plain one; codes and scales where it is packed.
    """
    if type(parameter.data).__module__.startswith("torchao"):
        yield from _inner(name, parameter.data)
        return
    yield name, parameter
    state: Any = getattr(parameter, "quant_state", None)
    if state is not None:
        yield f"{name}.absmax", state.absmax
        if state.state2 is not None:  # the scales of scales
            yield f"{name}.nested_absmax", state.state2.absmax
            yield f"{name}.offset", state.offset
    elif hasattr(parameter, "SCB"):
        # bitsandbytes moves the scales from the parameter to the layer's state at the first forward pass.
        layer: Any = modules[name.rpartition(".")[0]]
        own: Any = getattr(parameter, "SCB", None)
        scales = layer.state.SCB if own is None else own
        if scales is not None:
            yield f"{name}.SCB", scales


def is_packed(module: nn.Module) -> bool:
    """Tell whether a module's own weight is quantised.

    Args:
        module: Any module.

    Returns:
        Whether it is a layer of bitsandbytes or holds a weight of torchao.
    """
    if type(module).__module__.startswith("bitsandbytes"):
        return True
    weight = module._parameters.get("weight")
    return weight is not None and type(weight.data).__module__.startswith("torchao")


def _inner(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    if hasattr(tensor, "__tensor_flatten__"):
        for part in tensor.__tensor_flatten__()[0]:
            yield from _inner(f"{name}.{part}", getattr(tensor, part))
    else:
        yield name, tensor


def size_of(parameter: Any) -> int:
    """Return the number of weights a parameter stands for.

    Args:
        parameter: Packed or not.

    Returns:
        Weights, not bytes.
    """
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
