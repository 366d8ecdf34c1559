"""Which parameters a mask chooses among, and which train whatever it chooses."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from tailora.errors import UserError, unknown_name

HEAD_CLASSES = ("Classification", "QuestionAnswering", "MultipleChoice", "Regression")
"""Words in a transformers class name that mean: what lies outside the base model is new and made for the task."""

WRAPPERS = ("module", "_orig_mod")
"""Where DistributedDataParallel and ``torch.compile`` keep the model."""


@dataclass(frozen=True)
class Candidates:
    """The trainable parameters of a model, told apart.

    Attributes:
        chosen: What a mask chooses among, in the model's order.
        head: The task head: trains in full and is counted apart.
        other: Trainable parameters that ``parameters=`` left out: they train in full.
    """

    chosen: dict[str, nn.Parameter]
    head: dict[str, nn.Parameter]
    other: dict[str, nn.Parameter]

    @property
    def total(self) -> int:
        """Number of candidate entries."""
        return sum(parameter.numel() for parameter in self.chosen.values())


def bare_model(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers that only add a prefix to its parameters' names.

    Args:
        model: The model, perhaps inside DistributedDataParallel or ``torch.compile``.

    Returns:
        The inner model.
    """
    known = ("DistributedDataParallel", "DataParallel", "OptimizedModule")
    while type(model).__name__ in known:
        model = next(getattr(model, name) for name in WRAPPERS if isinstance(getattr(model, name, None), nn.Module))
    return model


def find_candidates(
    model: nn.Module, parameters: Sequence[str] | None = None, heads: Sequence[str] | None = None
) -> Candidates:
    """Tell the candidates from the task head.

    Every parameter that requires a gradient is a candidate, except the task head: what peft trains as
    ``modules_to_save`` (its classification tasks put ``classifier`` or ``score`` there), and what a transformers
    class for classification or question answering holds outside its base model, unless a peft layer sits on it.

    Args:
        model: A peft model, a model with other adapters, or a model without any (original FISH Mask).
        parameters: Names or patterns (``*`` and ``?``) of the candidates; all by default.
        heads: Names or patterns of the task head; found by the rules above by default, none where empty.

    Returns:
        The candidates.

    Raises:
        UserError: Nothing trains, nothing is left, or a pattern matches nothing that trains.
    """
    model = bare_model(model)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise UserError(
            "no parameter of the model requires a gradient; give the adapted model, or unfreeze its weights"
        )
    for name, parameter in trainable.items():
        if hasattr(parameter, "placements"):
            raise UserError(f"parameter {name!r} is sharded over processes, where no mask applies; use DDP instead")
    if heads is None:
        found = set(_head_parameters(model))
        head = [name for name, parameter in trainable.items() if id(parameter) in found]
    else:
        head = _matching("heads", heads, trainable)
    free = {name: parameter for name, parameter in trainable.items() if name not in set(head)}
    chosen = list(free) if parameters is None else _matching("parameters", parameters, free)
    if not chosen:
        raise UserError("only a task head trains, and it is no candidate; add an adapter, or pass heads=[]")
    return Candidates(
        {name: free[name] for name in chosen},
        {name: trainable[name] for name in head},
        {name: parameter for name, parameter in free.items() if name not in set(chosen)},
    )


def _matching(option: str, patterns: Sequence[str], known: dict[str, nn.Parameter]) -> list[str]:
    """Return the names that any pattern matches, in the model's order."""
    if isinstance(patterns, str):
        raise UserError(f"{option}={patterns!r} must be a list of names or patterns")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            if any(sign in pattern for sign in "*?["):
                raise UserError(f"{option}= pattern {pattern!r} matches no parameter that trains; check it")
            raise unknown_name(f"trainable parameter in {option}=", pattern, known)
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _head_parameters(model: nn.Module) -> Iterator[int]:
    """Yield the identities of the task head's parameters."""
    tuned: set[int] = set()
    if "peft" in sys.modules:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import ModulesToSaveWrapper

        for module in model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                yield from map(id, module.parameters())
            elif isinstance(module, BaseTunerLayer):
                tuned.update(_layer_parameters(module))
    get: Any = getattr(model, "get_base_model", None)
    base: Any = get() if callable(get) else model
    prefix = getattr(base, "base_model_prefix", "")
    body = getattr(base, prefix, None) if prefix else None
    if isinstance(body, nn.Module) and body is not base and any(w in type(base).__name__ for w in HEAD_CLASSES):
        inside = {id(parameter) for parameter in body.parameters()}
        yield from (id(p) for p in base.parameters() if id(p) not in inside and id(p) not in tuned)


def _layer_parameters(layer: Any) -> Iterator[int]:
    """Yield the identities of what a peft layer adds to the module it wraps."""
    for name in layer.adapter_layer_names:
        held = getattr(layer, name, None)
        if isinstance(held, nn.Parameter):
            yield id(held)
        elif isinstance(held, nn.Module):
            yield from map(id, held.parameters())
