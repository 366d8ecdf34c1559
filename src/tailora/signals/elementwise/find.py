"""Which rule covers which parameter."""

from __future__ import annotations

import sys

from torch import nn

from tailora.signals.elementwise.leaves import Leaf, conv1d_leaf, embedding_leaf, linear_leaf, norm_leaf
from tailora.signals.elementwise.slots import Frame, Slot


def find_leaves(model: nn.Module, slots: list[Slot], frame: Frame) -> tuple[list[Leaf], str]:
    """Return the leaves that cover all wanted parameters, or why they do not.

    Args:
        model: The model.
        slots: One per wanted parameter.
        frame: The current batch.

    Returns:
        The leaves, and a sentence's subject and verb where some parameter has no rule (empty where all have one).
    """
    wanted = {slot.parameter: slot for slot in slots}
    rules = [linear_leaf, conv1d_leaf, embedding_leaf, norm_leaf]
    if "peft" in sys.modules:
        from tailora.signals.elementwise.adapters import dora_leaf, ia3_leaf, lora_embedding_leaf, prompt_leaf

        rules += [dora_leaf, ia3_leaf, lora_embedding_leaf, prompt_leaf]
    leaves: list[Leaf] = []
    owners: dict[Slot, set[str]] = {}
    covered: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in covered:
            continue
        for rule in rules:
            leaf = rule(name, module, wanted, frame)
            if leaf is None:
                continue
            leaves.append(leaf)
            covered.update(leaf.covers)
            for slot in leaf.slots:
                owners.setdefault(slot, set()).add(rule.__name__)
            break
    for slot in slots:
        if slot not in owners:
            return [], f"{slot.name} lies in a layer for which no batched rule is known"
        if len(owners[slot]) > 1:
            return [], f"{slot.name} is shared by layers of different kinds"
    return leaves, ""
