"""Plans as text for other trainers: what to paste where.

Adding a trainer is one function from ``Hand`` to text and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tailora.emit.adapter_config import adapter_config
from tailora.emit.axolotl import axolotl
from tailora.emit.hand import TASK_TYPES, Hand
from tailora.emit.python import peft, trl, unsloth
from tailora.errors import UserError
from tailora.registry import Registry

if TYPE_CHECKING:
    from tailora.plans import Plan

EMITTERS: Registry[Callable[[Hand], str]] = Registry("trainer")
EMITTERS.add("peft", peft, summary="Python: a peft.LoraConfig")
EMITTERS.add("trl", trl, summary="Python: trl's SFTTrainer with the configuration")
EMITTERS.add("adapter-config", adapter_config, summary="JSON: peft's adapter_config.json, before any training")
EMITTERS.add("axolotl", axolotl, summary="YAML: the adapter's part of an axolotl configuration")
EMITTERS.add("unsloth", unsloth, summary="Python: FastLanguageModel.get_peft_model")

__all__ = ["EMITTERS", "TASK_TYPES", "Hand", "emit"]


def emit(plan: Plan, to: str, *, task_type: str | None = None, model: str | None = None) -> str:
    """Write a plan as a configuration of another trainer.

    Args:
        plan: The plan.
        to: ``peft``, ``trl``, ``adapter-config``, ``axolotl`` or ``unsloth``.
        task_type: peft's task type; trl is told ``CAUSAL_LM`` unless one is given, axolotl and unsloth find out.
        model: Name or folder of the base model, where the text needs one.

    Returns:
        The text, with a final line break.

    Raises:
        UserError: The trainer or the task type is unknown, the plan adapts nothing, or the trainer cannot hold it.
    """
    write = EMITTERS[to]
    if task_type is not None and task_type not in TASK_TYPES:
        raise UserError(f"task type {task_type!r} is none of peft's; use one of: {', '.join(TASK_TYPES)}")
    if plan.kept_params is not None:
        raise UserError(
            f"recipe {plan.recipe.name!r} trains {plan.kept_params:,} of {plan.adapter_params:,} adapter parameters, "
            f"which {to!r} cannot be told; use 'tailora train', or tailora.fisher_mask with your trainer"
        )
    return write(Hand.of(plan, task_type=task_type, model=model))
