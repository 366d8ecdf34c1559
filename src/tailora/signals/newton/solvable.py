"""Which targets a Newton step is solved for, and what is refused."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tailora.errors import ProfileError, UserError
from tailora.packed import is_packed
from tailora.signals.base import Context
from tailora.targets import Target


def oriented(target: Target, matrix: Tensor) -> Tensor:
    """Return a parameter as ``[out, in]``, or such a matrix as the parameter.

    Args:
        target: Whose.
        matrix: Of either layout.

    Returns:
        A view; GPT-2's ``Conv1D`` keeps its weight transposed.
    """
    return matrix.T if target.kind == "conv1d" else matrix


def refuse(how: Any, name: str) -> None:
    """Refuse what a solution in several passes cannot do.

    Args:
        how: ``Collecting``.
        name: The signal's name.

    Raises:
        UserError: One option cannot be used.
    """
    from torch import distributed

    several = how.all_processes and distributed.is_available() and distributed.is_initialized()
    if several and distributed.get_world_size() > 1:
        raise UserError(
            f"signal {name!r} is solved for in one process and this is one of {distributed.get_world_size()}; measure "
            "it in one, with all_processes=False and all the batches"
        )


def solvable(context: Context, name: str) -> tuple[list[int], str]:
    """Return the places of the targets that are solved for, and a sentence about the others.

    Args:
        context: The model and the targets.
        name: The signal's name.

    Returns:
        Places and a sentence, empty where there are no others.

    Raises:
        ProfileError: A target's weight is not here to be differentiated by.
        UserError: There is no linear target.
    """
    chosen, others = [], []
    modules = dict(context.model.named_modules())
    for index, target in enumerate(context.targets):
        if target.kind not in ("linear", "conv1d"):
            others.append(target.name)
            continue
        weight = modules[target.name]._parameters.get("weight")
        if weight is None or is_packed(modules[target.name]) or not weight.is_floating_point():
            raise ProfileError(
                f"target {target.name!r} is quantised, and signal {name!r} differentiates by the weights themselves; "
                "measure it on the base model before quantisation"
            )
        if weight.is_meta:
            raise ProfileError(
                f"target {target.name!r} is kept off its device, where signal {name!r} cannot differentiate by it; "
                "exclude it, or give it a device in the device_map"
            )
        shape = target.shape[::-1] if target.kind == "conv1d" else target.shape
        if hasattr(weight, "device_mesh") or tuple(weight.shape) != tuple(shape):
            raise ProfileError(
                f"target {target.name!r} is spread over several processes; measure {name!r} on the whole model in one"
            )
        chosen.append(index)
    if not chosen:
        raise UserError(
            f"signal {name!r} solves for linear layers, of which placement chose none; choose one such as 'all-linear'"
        )
    if not others:
        return chosen, ""
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return chosen, f"{others[0]}{more}: embeddings and stacked experts are not solved for, and their values are zero"
