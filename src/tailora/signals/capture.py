"""Take per-example gradients of a frozen model: whole batches where that is exact, one example at a time else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tailora.errors import ProfileError
from tailora.signals.gradients import ExampleGradients, accumulator_dtype
from tailora.targets import Target


class InputsModified(Exception):
    """A model changed a linear layer's input in place after using it; the batch is taken again with copies."""


@dataclass
class Call:
    """One call of one module: its input and the gradient at its output."""

    inputs: Tensor
    version: int
    output_gradient: Tensor | None = None


@dataclass
class Recorder:
    """Hooks on the modules of some targets.

    Attributes:
        targets: What is recorded.
        clone: Whether inputs are copied when recorded.
        calls: Per target, the calls of the current forward pass.
    """

    model: nn.Module
    targets: Sequence[Target]
    clone: bool = False
    calls: list[list[Call]] = field(default_factory=list)
    _handles: list[Any] = field(default_factory=list)
    _spark: Tensor | None = None

    def start(self) -> None:
        """Register the hooks."""
        modules = dict(self.model.named_modules())
        self.calls = [[] for _ in self.targets]
        for index, target in enumerate(self.targets):
            if target.kind not in ("linear", "conv1d"):
                continue
            hook = self._make_hook(index)
            self._handles.append(modules[target.name].register_forward_hook(hook, with_kwargs=True))

    def stop(self) -> None:
        """Remove the hooks and forget what was recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.calls = []

    def clear(self) -> None:
        """Forget the calls of the last pass."""
        for calls in self.calls:
            calls.clear()

    def _make_hook(self, index: int) -> Any:
        """Return the forward hook of one target."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            given = args[0] if args else next(value for value in kwargs.values() if isinstance(value, Tensor))
            inputs = given.detach().clone() if self.clone else given.detach()
            if not torch.is_grad_enabled():
                return output
            if not output.requires_grad:
                # A frozen model has no graph: add a zero that needs a gradient.  An addition, not requires_grad_ on
                # the output itself, because models may change a layer's output in place and a leaf forbids that.
                output = output + self._zero(output)
            call = Call(inputs, inputs._version)
            self.calls[index].append(call)

            def keep(gradient: Tensor) -> None:
                call.output_gradient = gradient.detach()

            output.register_hook(keep)
            return output

        return hook

    def _zero(self, like: Tensor) -> Tensor:
        """Return a zero of the output's dtype and device that requires a gradient."""
        if self._spark is None or self._spark.device != like.device or self._spark.dtype != like.dtype:
            self._spark = torch.zeros((), device=like.device, dtype=like.dtype, requires_grad=True)
        return self._spark


def is_batched(calls: Sequence[Call], examples: int) -> bool:
    """Tell whether the rows of every call are the batch's examples.

    Args:
        calls: The calls of one module in one pass.
        examples: Number of examples.

    Returns:
        Whether all inputs and output gradients are ``[examples, ..., width]`` with the same middle; false for
        flattened, shared or regrouped inputs, which need one example at a time.
    """
    return all(
        call.inputs.ndim >= 2
        and call.inputs.shape[0] == examples
        and (call.output_gradient is None or call.output_gradient.shape[:-1] == call.inputs.shape[:-1])
        for call in calls
    )


def gradients_of(calls: Sequence[Call], examples: int) -> ExampleGradients | None:
    """Join the calls of one module in one pass into per-example factors.

    A module used several times in one pass (shared layers) has one gradient per example, the *sum* over its calls, so
    the calls are joined along the positions before anything is squared.

    Args:
        calls: The calls; with one example any shape will do, else ``is_batched`` must hold.
        examples: Number of examples.

    Returns:
        The factors, or ``None`` where the loss does not reach the module.

    Raises:
        InputsModified: An input was changed in place after the call.
    """
    inputs, gradients = [], []
    for call in calls:
        if call.output_gradient is None:
            continue
        if call.inputs._version != call.version:
            raise InputsModified
        inputs.append(call.inputs.reshape(examples, -1, call.inputs.shape[-1]))
        gradients.append(call.output_gradient.reshape(examples, -1, call.output_gradient.shape[-1]))
    if not inputs:
        return None
    return ExampleGradients(torch.cat(inputs, dim=1), torch.cat(gradients, dim=1))


def direct_parameters(model: nn.Module, targets: Sequence[Target]) -> dict[int, nn.Parameter]:
    """Return the parameters whose gradient must be taken directly: expert tensors and embeddings.

    Args:
        model: The model.
        targets: The targets.

    Returns:
        Target index to parameter.

    Raises:
        ProfileError: Such a parameter is quantised, so that no gradient reaches it.
    """
    found: dict[int, nn.Parameter] = {}
    for index, target in enumerate(targets):
        if target.kind in ("linear", "conv1d"):
            continue
        name = target.name if target.kind == "parameter" else f"{target.name}.weight"
        parameter = model.get_parameter(name)
        if not parameter.is_floating_point():
            raise ProfileError(f"target {name!r} is stored as {parameter.dtype}, which has no gradient; exclude it")
        found[index] = parameter
    return found


def as_matrices(target: Target, gradient: Tensor) -> Tensor:
    """Return a parameter's gradient as ``[1, experts, out, in]``.

    Args:
        target: Whose parameter it is.
        gradient: In the parameter's own layout.

    Returns:
        The gradient in float32 or float64, in the target's orientation.
    """
    matrices = gradient.detach().to(accumulator_dtype(gradient.dtype))
    if matrices.ndim == 2:
        return matrices[None, None]
    if tuple(matrices.shape[1:]) != target.shape:
        matrices = matrices.transpose(1, 2)
    return matrices[None]


@contextlib.contextmanager
def undisturbed(model: nn.Module, direct: Mapping[int, nn.Parameter]) -> Iterator[None]:
    """Freeze and quieten a model, and give everything back as it was, whatever happens.

    Evaluation mode (no dropout), no parameter requires a gradient but ``direct`` ones, no key-value cache; training
    flags, ``requires_grad``, ``.grad`` and the random state return afterwards.

    Args:
        model: The model.
        direct: Parameters whose own gradient is wanted.

    Yields:
        Nothing.
    """
    training = {module: module.training for module in model.modules()}
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    gradients = {parameter: parameter.grad for parameter in direct.values()}
    found = [getattr(module, "config", None) for module in model.modules()]
    configs: dict[int, Any] = {id(config): config for config in found if getattr(config, "use_cache", None)}
    devices = sorted({p.device for p in required if p.device.type == "cuda"}, key=str)
    with torch.random.fork_rng(devices=devices):
        try:
            model.eval()
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
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
            for config in configs.values():
                config.use_cache = True
