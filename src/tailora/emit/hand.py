"""What every trainer is told of a plan, in the plan's order."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailora.plans import Plan

TASK_TYPES = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
"""peft's task types."""

# Set by peft itself, or written out one by one above the others.
_KNOWN = {"peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode", "runtime_config"}
_KNOWN |= {"r", "lora_alpha", "target_modules", "target_parameters", "rank_pattern", "alpha_pattern"}


@dataclass(frozen=True)
class Hand:
    """A plan's configuration as plain values.

    Attributes:
        plan: The plan.
        settings: Arguments of ``peft.LoraConfig`` that differ from its defaults, names in the model's order.
        task_type: peft's task type as asked for.
        model: Name or folder of the base model as asked for.
    """

    plan: Plan
    settings: dict[str, Any]
    task_type: str | None = None
    model: str | None = None

    @classmethod
    def of(cls, plan: Plan, *, task_type: str | None = None, model: str | None = None) -> Hand:
        """Take the values from the very configuration that ``plan.lora_config`` gives.

        Args:
            plan: The plan.
            task_type: peft's task type.
            model: Name or folder of the base model.

        Returns:
            The values.
        """
        config = plan.lora_config()
        # peft keeps the names as a set; people read the model's order.
        order = {name: place for place, name in enumerate(plan.ranks)}
        modules = config.target_modules
        if modules is not None and not isinstance(modules, str):
            modules = sorted(modules, key=order.__getitem__)
        settings: dict[str, Any] = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": modules}
        if config.target_parameters:
            settings["target_parameters"] = list(config.target_parameters)
        settings |= {"rank_pattern": dict(config.rank_pattern or {}), "alpha_pattern": dict(config.alpha_pattern or {})}
        plain = type(config)()
        for item in dataclasses.fields(config):
            if item.name not in _KNOWN and getattr(config, item.name) != getattr(plain, item.name):
                settings[item.name] = getattr(config, item.name)
        return cls(plan, settings, task_type, model)

    @property
    def comment(self) -> list[str]:
        """Lines that say what this is and what of the recipe it cannot hold."""
        plan, recipe = self.plan, self.plan.recipe
        adapted = sum(rank > 0 for rank in plan.ranks.values())
        name = " ".join(recipe.name.split())
        lines = [
            f"Tailora plan {plan.hash[:12]}, recipe {name}: {plan.total_params:,} adapter parameters on "
            f"{adapted} of {len(plan.ranks)} targets.",
        ]
        own: list[str] = []
        if recipe.initialisation.name != "default":
            own.append(f"initialisation {recipe.initialisation.name!r}")
        if recipe.mask is not None:
            own.append("the mask of what trains")
        if recipe.training.method != "standard":
            options = ", ".join(f"{key} {value}" for key, value in recipe.training.options.items())
            own.append(f"training method {recipe.training.method!r}{f' ({options})' if options else ''}")
        if own:
            lines.append(f"Not part of a LoRA configuration, set it up yourself: {'; '.join(own)}.")
        return lines
