"""The only place where plans meet peft: configuration, wrapping and counting."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tailora.errors import PlacementError, TailoraError, UserError

if TYPE_CHECKING:
    from tailora.plans import Plan

ADAPTER_MARKS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
"""Parts of a parameter's name that make it the adapter's; everything else that trains is a task head."""

HEAD_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
"""peft's task types whose head is new and trains in full."""


def pattern_key(name: str) -> str:
    """Return the one key of ``rank_pattern`` that can match only this target.

    peft matches keys as regular expressions behind an optional dotted prefix, so the anchor keeps a key from matching a
    longer name that ends the same.

    Args:
        name: The target's full name.

    Returns:
        An anchored, escaped regular expression.
    """
    return "^" + re.escape(name)


def lora_config(plan: Plan, *, task_type: str | None = None, **overrides: Any) -> LoraConfig:
    """Build the ``LoraConfig`` of a plan; see ``Plan.lora_config``."""
    adapted = [entry for entry in plan.targets if entry.rank]
    if not adapted:
        raise UserError("the plan adapts nothing: every rank is 0; plan with a larger budget")
    modules = [entry.target.name for entry in adapted if entry.target.kind != "parameter"]
    parameters = [entry.target.name for entry in adapted if entry.target.kind == "parameter"]
    dropout = plan.recipe.adapter.dropout
    if parameters and dropout:
        raise UserError(
            f"recipe {plan.recipe.name!r} asks for LoRA dropout {dropout} and the plan adapts the expert tensor "
            f"{parameters[0]!r}, for which peft has no dropout; set dropout to 0 or exclude the experts"
        )
    largest = max(adapted, key=lambda entry: entry.rank)
    settings: dict[str, Any] = {
        "r": largest.rank,
        "lora_alpha": largest.alpha,
        "rank_pattern": {pattern_key(entry.target.name): entry.rank for entry in adapted},
        "alpha_pattern": {pattern_key(entry.target.name): entry.alpha for entry in adapted},
        "target_modules": _module_rule(plan, modules),
        "lora_dropout": dropout,
        "use_dora": plan.recipe.adapter.dora,
        "use_rslora": plan.recipe.adapter.scaling.kind == "rslora",
        "bias": "none",
        # Only GPT-2's Conv1D stores its weight transposed; peft wants to be told when every target does.
        "fan_in_fan_out": bool(modules) and all(e.target.kind == "conv1d" for e in adapted),
        "task_type": task_type,
    }
    if parameters:
        settings["target_parameters"] = parameters
    return LoraConfig(**(settings | overrides))


def _module_rule(plan: Plan, modules: list[str]) -> list[str] | str:
    """Return full names, or a full-match expression where a name is the suffix of another candidate's."""
    wanted = set(modules)
    others = [entry.target.name for entry in plan.targets if entry.target.name not in wanted]
    if any(other.endswith(f".{name}") for name in modules for other in _by_last_part(others, name)):
        return "|".join(re.escape(name) for name in modules)
    return modules


def _by_last_part(names: list[str], like: str) -> list[str]:
    """Return the names that end in the same part as ``like``, the only ones that can have it as a suffix."""
    last = like.rpartition(".")[2]
    return [name for name in names if name.rpartition(".")[2] == last]


def apply_plan(
    plan: Plan,
    model: nn.Module,
    *,
    task_type: str | None = None,
    modules_to_save: Sequence[str] | None = None,
    seed: int = 0,
) -> PeftModel:
    """Wrap a model with a plan's adapter; see ``Plan.apply``."""
    plan.check(model)
    _refuse_heads(plan, task_type, modules_to_save or ())
    extra: dict[str, Any] = {"modules_to_save": list(modules_to_save)} if modules_to_save else {}
    config = lora_config(plan, task_type=task_type, **extra)
    with torch.random.fork_rng(devices=_devices(model)), warnings.catch_warnings():
        # peft warns of Conv1D beside Linear targets and then does the right thing by itself.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        # peft looks for the keys of expert tensors among modules only; the count below is the real check.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated")
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    counted = count_parameters(wrapped)["adapter_params"]
    if counted != plan.total_params:
        raise TailoraError(
            f"the plan has {plan.total_params:,} adapter parameters and peft would train {counted:,}; a target's name "
            "matches more or fewer modules of this model than it should, so please report the architecture"
        )
    return wrapped  # pyright: ignore[reportReturnType]


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


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Count what really trains.

    Args:
        model: A peft model.

    Returns:
        ``adapter_params`` and ``head_params`` (both only what requires a gradient) and ``base_params`` (everything that
        is neither, frozen).
    """
    from tailora.packed import size_of

    adapter = head = base = 0
    for name, parameter in model.named_parameters():
        is_adapter = any(mark in name for mark in ADAPTER_MARKS)
        if not parameter.requires_grad:
            base += 0 if is_adapter else size_of(parameter)
        elif is_adapter:
            adapter += parameter.numel()
        else:
            head += parameter.numel()
    return {"adapter_params": adapter, "head_params": head, "base_params": base}
