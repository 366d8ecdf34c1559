"""Hooks that see a frozen model's linear layers at work: their inputs and the gradients at their outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tailora.errors import ProfileError
from tailora.signals.observations import Observation, wide
from tailora.signals.orientation import oriented
from tailora.signals.quiet import Pausable
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
class Recorder(Pausable):
    """Hooks on the modules of some targets.

    Attributes:
        targets: What is recorded.
        gradients: Whether output gradients are wanted; without them a forward pass alone is recorded.
        clone: Whether inputs are copied when recorded.
        separate: Whether outputs that are views are copied: an in-place change of a view drops the hook on it.
        sink: Given a target's index and its calls as soon as all their gradients are there, or each call at once where
            gradients are not wanted, so that nothing is held until the end of the pass; ``None`` keeps everything until
            ``clear``.
        calls: Per target, the calls of the current pass that wait.
    """

    model: nn.Module
    targets: Sequence[Target]
    gradients: bool = True
    clone: bool = False
    separate: bool = False
    sink: Callable[[int, list[Call]], None] | None = None
    calls: list[list[Call]] = field(default_factory=list)
    backward: bool = False
    _expected: list[int] = field(default_factory=list)
    _received: list[int] = field(default_factory=list)
    _unrecorded: list[int] = field(default_factory=list)
    _handles: list[Any] = field(default_factory=list)
    _spark: Tensor | None = None

    def start(self) -> None:
        """Register the hooks."""
        modules = dict(self.model.named_modules())
        self.calls = [[] for _ in self.targets]
        self.clear()
        for index, target in enumerate(self.targets):
            if target.kind in ("linear", "conv1d"):
                hook = self._make_hook(index)
                # Before the caller's hooks, which may change the output: a LoRA adds to what the layer itself returns.
                handle = modules[target.name].register_forward_hook(hook, prepend=True, with_kwargs=True)
                self._handles.append(handle)

    def stop(self) -> None:
        """Remove the hooks and forget what was recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.calls = []
        self.sink = self._spark = None

    def clear(self) -> None:
        """Forget the calls of the last pass."""
        for calls in self.calls:
            calls.clear()
        self.backward = False
        self._expected, self._received, self._unrecorded = ([0] * len(self.targets) for _ in range(3))

    def missing(self) -> list[int]:
        """Return targets that were called in the last pass and got no gradient for one of the calls."""
        pairs = zip(self._expected, self._received, strict=True)
        return [index for index, (expected, received) in enumerate(pairs) if received < expected]

    def uncalled(self) -> list[int]:
        """Return targets with a module of their own that the last pass never called."""
        kinds = ("linear", "conv1d")
        return [i for i, target in enumerate(self.targets) if target.kind in kinds and not self._expected[i]]

    def _make_hook(self, index: int) -> Any:
        """Return the forward hook of one target."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            if self._paused:
                return output
            given = args[0] if args else next(value for value in kwargs.values() if isinstance(value, Tensor))
            if not self.gradients:
                call = self._record(index, given)
                if self.sink is not None:
                    self.calls[index].clear()
                    self.sink(index, [call])
                return output
            if not torch.is_grad_enabled():
                # Reentrant checkpointing runs the forward pass without a graph and again, with one, in the backward.
                self._expected[index] += 1
                self._unrecorded[index] += 1
                return output
            if not output.requires_grad:
                # A frozen model has no graph: add a zero that needs a gradient.  An addition, not requires_grad_ on
                # the output itself, because models may change a layer's output in place and a leaf forbids that.
                output = output + self._zero(output)
            elif self.separate and output._is_view():
                output = output.clone()
            if not self.backward:
                self._expected[index] += 1
            elif self._unrecorded[index]:
                self._unrecorded[index] -= 1
            else:
                return output  # the other form of checkpointing repeats a call whose gradient the first one gets
            call = self._record(index, given)

            def keep(gradient: Tensor) -> None:
                call.output_gradient = gradient.detach()
                self._received[index] += 1
                if self.sink is not None and self._received[index] == self._expected[index]:
                    calls, self.calls[index] = self.calls[index], []
                    self.sink(index, calls)

            output.register_hook(keep)
            return output

        return hook

    def _record(self, index: int, given: Tensor) -> Call:
        inputs = given.detach().clone() if self.clone else given.detach()
        call = Call(inputs, inputs._version)
        self.calls[index].append(call)
        return call

    def _zero(self, like: Tensor) -> Tensor:
        """Return a zero of the output's dtype and device that requires a gradient."""
        if self._spark is None or self._spark.device != like.device or self._spark.dtype != like.dtype:
            self._spark = torch.zeros((), device=like.device, dtype=like.dtype, requires_grad=True)
        return self._spark


def is_batched(calls: Sequence[Call], rows: int) -> bool:
    """Tell whether the rows of every call are the batch's rows.

    Args:
        calls: The calls of one module in one pass.
        rows: Number of rows in the batch.

    Returns:
        Whether all inputs and output gradients are ``[rows, ..., width]`` with the same middle; false for
        flattened, shared or regrouped inputs, which need one example at a time.
    """
    return all(
        call.inputs.ndim >= 2
        and call.inputs.shape[0] == rows
        and (call.output_gradient is None or call.output_gradient.shape[:-1] == call.inputs.shape[:-1])
        for call in calls
    )


def observe(calls: Sequence[Call], examples: int, *, gradients: bool = True) -> Observation | None:
    """Join the calls of one module in one pass.

    A module used several times in one pass (shared layers) has one gradient per example, the *sum* over its calls, so
    the calls are joined along the positions before anything is squared.  Rows that make one example stand together and
    are joined in the same way.

    Args:
        calls: The calls; with one example any shape will do, else ``is_batched`` must hold.
        examples: Number of examples.
        gradients: Whether calls without a gradient are left out where others have one; else they are all taken, for
            their inputs.

    Returns:
        What was seen, without gradients where the loss does not reach the module; ``None`` without a call.

    Raises:
        InputsModified: An input was changed in place after the call.
    """
    reached = [call for call in calls if call.output_gradient is not None]
    gradients = gradients and bool(reached)
    taken = reached if gradients else list(calls)
    if not taken:
        return None
    if any(call.inputs._version != call.version for call in taken):
        raise InputsModified
    inputs = [call.inputs.reshape(examples, -1, call.inputs.shape[-1]) for call in taken]
    flowing = [call.output_gradient for call in reached if gradients and call.output_gradient is not None]
    found = [g.reshape(examples, -1, g.shape[-1]) for g in flowing]
    seen = Observation(_joined(inputs), _joined(found) if found else None)
    seen.lengths = tuple(part.shape[1] for part in inputs)
    return seen


def direct_parameters(model: nn.Module, targets: Sequence[Target]) -> dict[int, nn.Parameter]:
    """Return the parameters whose gradient must be taken directly: expert tensors and embeddings.

    Args:
        model: The model.
        targets: The targets.

    Returns:
        Target index to parameter.

    Raises:
        ProfileError: Such a parameter is quantised or kept elsewhere, so that no gradient reaches it.
    """
    found: dict[int, nn.Parameter] = {}
    for index, target in enumerate(targets):
        if target.kind in ("linear", "conv1d"):
            continue
        name = target.name if target.kind == "parameter" else f"{target.name}.weight"
        parameter = model.get_parameter(name)
        if parameter.is_meta:
            raise ProfileError(
                f"target {name!r} is kept off its device, where its own gradient cannot be taken; exclude it, or give "
                "it a device in the device_map"
            )
        if not parameter.is_floating_point():
            raise ProfileError(f"target {name!r} is stored as {parameter.dtype}, which has no gradient; exclude it")
        found[index] = parameter
    return found


def as_matrices(model: nn.Module, target: Target, gradient: Tensor) -> Tensor:
    """Return a parameter's gradient as ``[1, experts, out, in]``.

    Args:
        model: The model.
        target: Whose parameter it is.
        gradient: In the parameter's own layout.

    Returns:
        The gradient in float32 or float64, in the target's orientation.
    """
    name = target.name.rpartition(".")[0] if target.kind == "parameter" else target.name
    return oriented(target, model.get_submodule(name), wide(gradient.detach()))[None]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
