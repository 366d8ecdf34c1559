"""Plans as Python: peft, trl and unsloth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailora.emit.hand import Hand


def peft(hand: Hand) -> str:
    """Write ``lora_config = LoraConfig(...)``, equal to what ``plan.lora_config`` returns.

    Args:
        hand: The plan's values.

    Returns:
        Python source that runs as it is.
    """
    settings = dict(hand.settings)
    if hand.task_type:
        settings["task_type"] = hand.task_type
    return f"{_comment(hand.comment)}from peft import LoraConfig\n\nlora_config = {_call('LoraConfig', settings)}\n"


def trl(hand: Hand) -> str:
    """Write a script around trl's ``SFTTrainer``.

    Args:
        hand: The plan's values.

    Returns:
        Python source; ``train_dataset`` is the reader's.
    """
    settings = {**hand.settings, "task_type": hand.task_type or "CAUSAL_LM"}
    parts = [
        _comment(hand.comment),
        "from peft import LoraConfig\nfrom transformers import set_seed\nfrom trl import SFTConfig, SFTTrainer\n\n",
        f"lora_config = {_call('LoraConfig', settings)}\n\n",
        # The trainer seeds itself only after it has wrapped the model.
        "set_seed(0)  # the adapter's first weights are drawn when SFTTrainer is made\n",
        "trainer = SFTTrainer(\n",
        f"    model={hand.model or 'MODEL'!r},\n",
        '    args=SFTConfig(output_dir="sft"),\n',
        "    train_dataset=train_dataset,  # yours: datasets.Dataset with text, messages or prompt and completion\n",
        "    peft_config=lora_config,\n)\ntrainer.train()\n",
    ]
    return "".join(parts)


def unsloth(hand: Hand) -> str:
    """Write the call of ``FastLanguageModel.get_peft_model``, which finds the task type out by itself.

    Args:
        hand: The plan's values.

    Returns:
        Python source; ``model`` is what ``FastLanguageModel.from_pretrained`` returned.
    """
    notes = ["Full names are custom modules to unsloth: it trains them, and says that its fast paths may not apply."]
    adapted = [entry.target for entry in hand.plan.targets if entry.rank]
    whole = [target.name for target in adapted if target.role in ("embedding", "head")]
    if whole:
        notes.append(f"Careful: unsloth trains {whole[0]} in full instead of by LoRA; plan without it.")
    settings = dict(hand.settings)
    if isinstance(settings["target_modules"], str):
        # unsloth walks over a list; anchored full names need no pattern unless one name ends in another.
        settings["target_modules"] = [target.name for target in adapted if target.kind != "parameter"]
        notes.append("Careful: some names below are the ends of others; check the number of trained parameters.")
    # Written out because unsloth has defaults of its own.
    settings = {**settings, "lora_dropout": settings.get("lora_dropout", 0.0), "bias": "none", "random_state": 0}
    return (
        f"{_comment([*hand.comment, *notes])}model = {_call('FastLanguageModel.get_peft_model', settings, 'model')}\n"
    )


def _comment(lines: list[str]) -> str:
    return "".join(f"# {line}\n" for line in lines)


def _call(name: str, settings: Mapping[str, Any], *first: str) -> str:
    """Write a call with one argument a line."""
    inner = [f"    {argument},\n" for argument in first]
    inner += [f"    {key}={_value(value)},\n" for key, value in settings.items()]
    return f"{name}(\n{''.join(inner)})"


def _value(value: Any) -> str:
    """Write a value as source, names and patterns one a line."""
    if isinstance(value, dict | list) and not value:
        return repr(value)
    if isinstance(value, dict):
        return "{\n" + "".join(f"        {_text(key)}: {item!r},\n" for key, item in value.items()) + "    }"
    if isinstance(value, list):
        return "[\n" + "".join(f"        {_text(item)},\n" for item in value) + "    ]"
    return _text(value) if isinstance(value, str) else repr(value)


def _text(value: str) -> str:
    """Write a string, raw where it has backslashes and can be raw."""
    if "\\" in value and value.isprintable() and '"' not in value and not value.endswith("\\"):
        return f'r"{value}"'
    return f'"{value}"' if value.isprintable() and '"' not in value and "\\" not in value else repr(value)
