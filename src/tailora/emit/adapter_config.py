"""Plans as the ``adapter_config.json`` that peft itself would write."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from tailora.emit.hand import Hand
from tailora.errors import UserError


def adapter_config(hand: Hand) -> str:
    """Write ``adapter_config.json`` of an adapter that is still to be trained, for programs that start from one.

    peft's method comparison does: ``experiments/lora/NAME/adapter_config.json`` is all that it needs.

    Args:
        hand: The plan's values.

    Returns:
        JSON, by peft's own writer.

    Raises:
        UserError: The recipe's training method or initialisation would be lost: JSON has no room for a comment that
            says so.
    """
    recipe = hand.plan.recipe
    if recipe.training.method != "standard":
        raise UserError(
            f"recipe {recipe.name!r} trains by the method {recipe.training.method!r}, which adapter_config.json cannot "
            "say; plan with a recipe that trains by the standard method, and set the method up in the program that "
            "reads the file"
        )
    if recipe.initialisation.name != "default":
        raise UserError(
            f"recipe {recipe.name!r} has the initialisation {recipe.initialisation.name!r}, which adapter_config.json "
            "cannot say; plan with a recipe that starts as peft does"
        )
    config = hand.plan.lora_config(task_type=hand.task_type)
    config.base_model_name_or_path = hand.model
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return Path(folder, "adapter_config.json").read_text(encoding="utf-8").rstrip("\n") + "\n"
