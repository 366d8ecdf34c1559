"""Where plans meet peft: wrapping a model, and counting what trains."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from tailora.adapter_configs import peft_config
from tailora.adapter_kinds import ADAPTER_MARKS
from tailora.errors import PlacementError, PlanMismatchError, TailoraError, UserError
from tailora.initialisation import INITIALISATIONS

if TYPE_CHECKING:
    from tailora.plans import Plan
    from tailora.profiles import Profile

HEAD_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
"""peft's task types whose head is new and trains in full."""


def apply_plan(
    plan: Plan,
    model: nn.Module,
    *,
    task_type: str | None = None,
    modules_to_save: Sequence[str] | None = None,
    seed: int = 0,
    profile: Profile | None = None,
) -> PeftModel:
    """Wrap a model with a plan's adapter; see ``Plan.apply``."""
    plan.check(model)
    _refuse_heads(plan, task_type, modules_to_save or ())
    start = _start(plan, profile)
    extra: dict[str, Any] = {"modules_to_save": list(modules_to_save)} if modules_to_save else {}
    config = peft_config(plan, task_type=task_type, **extra)
    with torch.random.fork_rng(devices=_devices(model)), warnings.catch_warnings():
        # peft warns of Conv1D beside Linear targets and then does the right thing by itself.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        # peft looks for the keys of expert tensors among modules only; the count below is the real check.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated")
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    own = own_weights(plan)
    for name, parameter in wrapped.named_parameters():
        if own and parameter.requires_grad and name.endswith(".modules_to_save.default.bias"):
            # Whether a module has a bias is no part of a plan, and the mask is over matrices.
            parameter.requires_grad_(_module_of(name) not in own)
    counted = count_parameters(wrapped, own)["adapter_params"]
    if counted != plan.adapter_params:
        raise TailoraError(
            f"the plan has {plan.adapter_params:,} adapter parameters and peft would train {counted:,}; a target's "
            "name matches more or fewer modules of this model than it should, so please report the architecture"
        )
    with torch.no_grad():
        for name, rows in start.items():
            layer: Any = wrapped.get_submodule(f"base_model.model.{name}")
            layer.lora_A["default"].weight[: len(rows)] = rows
    return wrapped  # pyright: ignore[reportReturnType]


def _start(plan: Plan, profile: Profile | None) -> dict[str, torch.Tensor]:
    """Return the leading rows of every ``A`` that peft's own start does not decide."""
    name = plan.recipe.initialisation.name
    rows = INITIALISATIONS[name].rows
    if rows is None:
        return {}
    if profile is None:
        raise UserError(
            f"recipe {plan.recipe.name!r} has the initialisation {name!r}, which reads a profile; give "
            "plan.apply(model, profile=...) one that was measured with keep_sums=True"
        )
    theirs = {target.name: target.shape for target in profile.targets}
    for target in (entry.target for entry in plan.targets if entry.rank):
        if theirs.get(target.name, target.shape) != target.shape:
            raise PlanMismatchError(
                f"target {target.name!r} is {list(target.shape)} in the plan and {list(theirs[target.name])} in the "
                "profile that it is to start from; profile this model"
            )
    return rows(profile, plan.ranks)


def _refuse_heads(plan: Plan, task_type: str | None, modules_to_save: Sequence[str]) -> None:
    """Refuse LoRA on a module that trains in full beside the adapter."""
    for entry in plan.targets:
        name, role = entry.target.name, entry.target.role
        whole = role == "head" and task_type in HEAD_TASKS
        whole = whole or any(name == m or name.endswith(f".{m}") or f"{m}." in name for m in modules_to_save)
        if entry.rank and whole:
            raise PlacementError(
                f"target {name!r} trains in full as a task head and cannot have LoRA too; add '& !role:head' (or "
                "'& !regex:...') to the placement"
            )


def _devices(model: nn.Module) -> list[torch.device]:
    """Return the accelerator devices a model lies on, whose random state must be kept."""
    return sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)


def own_weights(plan: Plan) -> frozenset[str]:
    """Return the modules whose own weights a plan trains instead of an adapter's.

    Args:
        plan: The plan.

    Returns:
        Module names in the base model; empty for every kind of adapter but ``weights``.
    """
    if plan.recipe.adapter.kind != "weights":
        return frozenset()
    return frozenset(name for name, rank in plan.ranks.items() if rank)


def _module_of(name: str) -> str:
    """Return the base model's name of the module that a saved copy's parameter belongs to."""
    return name.removeprefix("base_model.model.").partition(".modules_to_save.")[0]


def count_parameters(model: nn.Module, own: Collection[str] = ()) -> dict[str, int]:
    """Count what really trains.

    Args:
        model: A peft model.
        own: Modules whose own weights count as the adapter (``own_weights``).

    Returns:
        ``adapter_params`` and ``head_params`` (both only what requires a gradient) and ``base_params`` (everything that
        is neither, frozen).
    """
    from tailora.packed import size_of

    adapter = head = base = 0
    for name, parameter in model.named_parameters():
        is_adapter = any(mark in name for mark in ADAPTER_MARKS) or bool(own and _module_of(name) in own)
        if not parameter.requires_grad:
            base += 0 if is_adapter else size_of(parameter)
        elif is_adapter:
            adapter += parameter.numel()
        else:
            head += parameter.numel()
    return {"adapter_params": adapter, "head_params": head, "base_params": base}
