"""Freezing a model for a pass and giving everything back as it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from tailora.errors import UserError

Mode = Literal["eval", "train"]


class Pausable:
    """Something with hooks that can look away for a while."""

    _paused = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Look away from calls of the model, so that what came before them can still be used.

        Yields:
            Nothing.
        """
        self._paused = True
        try:
            yield
        finally:
            self._paused = False


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off where it is on, so that sums are taken in the dtype they are meant to be taken in.

    Args:
        device: Where the work is done.

    Returns:
        A context; entering autocast's own once a layer costs a short batch several percent, so it is empty elsewhere.
    """
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else contextlib.nullcontext()


@contextlib.contextmanager
def undisturbed(model: nn.Module, direct: Mapping[int, nn.Parameter], mode: Mode = "eval") -> Iterator[None]:
    """Freeze and quieten a model, and give everything back as it was, whatever happens.

    No parameter requires a gradient but ``direct`` ones, there is no key-value cache and no inference mode; training
    flags, ``requires_grad``, ``.grad`` and the random state return afterwards.

    Args:
        model: The model.
        direct: Parameters whose own gradient is wanted.
        mode: ``eval`` (no dropout) or ``train`` (dropout and gradient checkpointing as the model is set).

    Yields:
        Nothing.

    Raises:
        UserError: The model's weights can have no gradient.
    """
    if (name := next((name for name, held in model.named_parameters() if held.is_inference()), None)) is not None:
        raise UserError(
            f"parameter {name!r} was made under torch.inference_mode and can have no gradient; make or load the model "
            "outside of it"
        )
    training = {module: module.training for module in model.modules()}
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    # Parameters that are kept off their device are replaced by new ones whenever their module runs.
    named = {name: parameter.requires_grad for name, parameter in model.named_parameters() if parameter.is_meta}
    gradients = {parameter: parameter.grad for parameter in direct.values()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()] if mode == "train" else []
    # Models draw from the global generators, so it is those that must be put back.
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    found = [getattr(module, "config", None) for module in model.modules()]
    configs: dict[int, Any] = {id(config): config for config in found if getattr(config, "use_cache", None)}
    # transformers writes down which loss it chose for a classifier.
    written: list[Any] = [config for config in found if hasattr(config, "problem_type")]
    problems = [(config, config.problem_type) for config in written]
    devices = sorted({p.device for p in required if p.device.type == "cuda"}, key=str)
    # A caller's inference mode would forbid the graph, and the look at whether an input was changed in place.
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False):
        try:
            model.train(mode == "train")
            for parameter in required:
                parameter.requires_grad_(False)
            for parameter in direct.values():
                parameter.requires_grad_(True)
                parameter.grad = None
            for config in configs.values():
                config.use_cache = False
            yield
        finally:
            for module, flag in training.items():
                module.training = flag
            for parameter, flag in required.items():
                parameter.requires_grad_(flag)
            for name, flag in named.items():
                model.get_parameter(name).requires_grad_(flag)
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
            for config in configs.values():
                config.use_cache = True
            for config, kind in problems:
                config.problem_type = kind
            with torch.no_grad():
                for buffer, held in buffers:
                    buffer.copy_(held)
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
