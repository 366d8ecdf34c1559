"""Plans as the adapter's part of an axolotl configuration."""

from __future__ import annotations

from typing import Any

from tailora.emit.hand import Hand
from tailora.errors import UserError

_KEYS = {
    "use_dora": "peft_use_dora",
    "use_rslora": "peft_use_rslora",
    "fan_in_fan_out": "lora_fan_in_fan_out",
    "init_lora_weights": "peft_init_lora_weights",
}
_WRITTEN = {"r", "lora_alpha", "lora_dropout", "target_modules", "target_parameters", "rank_pattern", "alpha_pattern"}


def axolotl(hand: Hand) -> str:
    """Write axolotl's keys; the per-module ones exist since its pull request 3673 of July 2026.

    Args:
        hand: The plan's values.

    Returns:
        YAML.

    Raises:
        UserError: An alpha is not whole, which axolotl does not take.
    """
    import yaml

    settings = hand.settings
    for name, alpha in hand.plan.alphas.items():
        if not float(alpha).is_integer():
            raise UserError(
                f"target {name!r} has alpha {alpha}, and axolotl takes whole alphas only; plan with a recipe whose "
                "scaling gives whole ones, or with --multiple 2"
            )
    content: dict[str, Any] = {
        "adapter": "lora",
        "lora_r": settings["r"],
        "lora_alpha": int(settings["lora_alpha"]),
        # Off by default; a plan without dropout must not get any from a configuration this is pasted into.
        "lora_dropout": settings.get("lora_dropout", 0.0),
    }
    # A model whose every adapted matrix is a fused expert tensor has no module to name.
    if settings["target_modules"]:
        content["lora_target_modules"] = settings["target_modules"]
    if "target_parameters" in settings:
        content["lora_target_parameters"] = settings["target_parameters"]
    content["lora_rank_pattern"] = settings["rank_pattern"]
    content["lora_alpha_pattern"] = {key: int(alpha) for key, alpha in settings["alpha_pattern"].items()}
    content |= {_KEYS[key]: value for key, value in settings.items() if key in _KEYS}
    training = hand.plan.recipe.training
    lines = list(hand.comment)
    if training.method == "lora-plus":
        content["loraplus_lr_ratio"] = float(training.options.get("ratio", 16.0))
        lines = lines[:1]
    lines += [
        "lora_rank_pattern and lora_alpha_pattern need axolotl of July 2026 or newer; an older one may ignore them.",
        "Keep them unchanged when you resume: axolotl builds the adapter from this file again.",
    ]
    unknown = [key for key in settings if key not in _KEYS and key not in _WRITTEN]
    lines += [f"axolotl has no key for peft's {key}, which this plan sets." for key in unknown]
    if hand.model:
        content = {"base_model": hand.model, **content}
    body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=False)
    return "".join(f"# {line}\n" for line in lines) + body
