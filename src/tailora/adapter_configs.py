"""peft's configuration for every kind of adapter that a plan can size; one function a kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from peft import IA3Config, LoHaConfig, LoraConfig

from tailora.errors import UserError

if TYPE_CHECKING:
    from peft import PeftConfig

    from tailora.plans import Plan, PlannedTarget


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
    if plan.recipe.adapter.kind != "lora":
        raise UserError(
            f"recipe {plan.recipe.name!r} makes {plan.recipe.adapter.kind!r} adapters, which no LoraConfig describes; "
            "call plan.peft_config()"
        )
    adapted = _adapted(plan)
    modules = [entry.target.name for entry in adapted if entry.target.kind != "parameter"]
    parameters = [entry.target.name for entry in adapted if entry.target.kind == "parameter"]
    dropout = plan.recipe.adapter.dropout
    if parameters and dropout:
        raise UserError(
            f"recipe {plan.recipe.name!r} asks for LoRA dropout {dropout} and the plan adapts the expert tensor "
            f"{parameters[0]!r}, for which peft has no dropout; set dropout to 0 or exclude the experts"
        )
    settings: dict[str, Any] = {
        **_ranks(adapted, "lora_alpha"),
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


def _loha(plan: Plan, *, task_type: str | None, **overrides: Any) -> PeftConfig:
    adapted = _adapted(plan)
    settings = {
        **_ranks(adapted, "alpha"),
        "target_modules": _module_rule(plan, [entry.target.name for entry in adapted]),
        "module_dropout": plan.recipe.adapter.dropout,
        "task_type": task_type,
    }
    return LoHaConfig(**(settings | overrides))


def _ia3(plan: Plan, *, task_type: str | None, **overrides: Any) -> PeftConfig:
    _refuse_dropout(plan)
    adapted = _adapted(plan)
    names = [entry.target.name for entry in adapted]
    inputs = [entry.target.name for entry in adapted if entry.target.role == "ffn.down"]
    settings: dict[str, Any] = {
        "target_modules": _module_rule(plan, names),
        "feedforward_modules": _module_rule(plan, inputs) if inputs else [],
        "fan_in_fan_out": all(entry.target.kind == "conv1d" for entry in adapted),
        "task_type": task_type,
    }
    return IA3Config(**(settings | overrides))


def _bottleneck(plan: Plan, *, task_type: str | None, **overrides: Any) -> PeftConfig:
    from tailora.bottleneck import BottleneckConfig

    _refuse_dropout(plan)
    adapted = _adapted(plan)
    settings: dict[str, Any] = {
        "bottleneck": max(entry.rank for entry in adapted),
        "size_pattern": {pattern_key(entry.target.name): entry.rank for entry in adapted},
        "target_modules": _module_rule(plan, [entry.target.name for entry in adapted]),
        "activation": plan.recipe.adapter.activation,
        "task_type": task_type,
    }
    return BottleneckConfig(**(settings | overrides))


def _weights(plan: Plan, *, task_type: str | None, **overrides: Any) -> PeftConfig:
    """Let peft train and store copies of the modules themselves, and adapt nothing."""
    from peft.utils.constants import DUMMY_TARGET_MODULES

    _refuse_dropout(plan)
    names = [entry.target.name for entry in _adapted(plan)]
    if not isinstance(_module_rule(plan, names), list):
        raise UserError(
            f"recipe {plan.recipe.name!r} trains modules by name, and one of them ends like another candidate's name; "
            "narrow the placement so that all of them or none train"
        )
    heads = overrides.pop("modules_to_save", None) or []
    settings = {"target_modules": DUMMY_TARGET_MODULES, "modules_to_save": [*names, *heads], "task_type": task_type}
    return LoraConfig(**(settings | overrides))


_CONFIGS: dict[str, Callable[..., PeftConfig]] = {
    "lora": lora_config,
    "loha": _loha,
    "ia3": _ia3,
    "bottleneck": _bottleneck,
    "weights": _weights,
}


def peft_config(plan: Plan, *, task_type: str | None = None, **overrides: Any) -> PeftConfig:
    """Build the peft configuration of a plan; see ``Plan.peft_config``."""
    return _CONFIGS[plan.recipe.adapter.kind](plan, task_type=task_type, **overrides)


def _adapted(plan: Plan) -> list[PlannedTarget]:
    adapted = [entry for entry in plan.targets if entry.rank]
    if not adapted:
        raise UserError("the plan adapts nothing: every rank is 0; plan with a larger budget")
    return adapted


def _ranks(adapted: Sequence[PlannedTarget], alpha: str) -> dict[str, Any]:
    """Return the largest rank as the default, and one key per target."""
    largest = max(adapted, key=lambda entry: entry.rank)
    return {
        "r": largest.rank,
        alpha: largest.alpha,
        "rank_pattern": {pattern_key(entry.target.name): entry.rank for entry in adapted},
        "alpha_pattern": {pattern_key(entry.target.name): entry.alpha for entry in adapted},
    }


def _refuse_dropout(plan: Plan) -> None:
    adapter = plan.recipe.adapter
    if adapter.dropout:
        raise UserError(
            f"recipe {plan.recipe.name!r} asks for dropout {adapter.dropout}, which {adapter.kind!r} adapters do not "
            "have; set dropout to 0"
        )


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
