"""Weights that accelerate keeps on the host or on disk, and brings in only while their module runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """Bring a module's own parameters in while they are read.

    A model that was loaded with a ``device_map`` wider than its GPU holds parameters on the meta device, without
    values, and hooks that fetch them for every forward pass; this does the same without one.

    Args:
        module: Any module; one whose parameters are there is left alone.

    Yields:
        Nothing; tensors that were read may be kept afterwards.
    """
    if getattr(module, "_hf_hook", None) is None:
        yield
        return
    from accelerate.utils import align_module_device, has_offloaded_params

    if not has_offloaded_params(module):
        yield
        return
    with align_module_device(module, torch.device("cpu")):
        yield


def own_parameter(modules: dict[str, nn.Module], name: str, parameter: nn.Parameter) -> Tensor:
    """Return a parameter with its values, fetched where they are elsewhere.

    Args:
        modules: The model's modules by name.
        name: The parameter's name.
        parameter: The parameter as the model holds it.

    Returns:
        The parameter itself where it is there or nothing can fetch it; else its values, on the host.
    """
    if not parameter.is_meta:
        return parameter
    owner, _, key = name.rpartition(".")
    with present(modules[owner]):
        found = modules[owner]._parameters[key]
    return parameter if found is None else found


def known_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and parameter as ``named_parameters`` does, shared ones once even where their tie is lost.

    accelerate gives every module a placeholder of its own once it has run, also where two modules share a parameter.

    Args:
        model: The model.

    Yields:
        Name and parameter.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, parameter in list(model.named_parameters()):
        if not (parameter.is_meta and name in tied):
            yield name, parameter


def input_device(model: nn.Module) -> torch.device | None:
    """Return where a model takes its inputs.

    Args:
        model: The model.

    Returns:
        The device of its first parameter that has values; ``None`` where none has, so that inputs stay where they are.
    """
    return next((parameter.device for parameter in model.parameters() if not parameter.is_meta), None)
