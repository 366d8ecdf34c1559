"""The adaptable weight matrices of a model: what they are, where they sit and what a rank on them costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailora.targets.target import ROLES, Kind, Target

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ROLES", "Kind", "Target", "find_targets"]


def find_targets(model: nn.Module) -> list[Target]:
    """Return every weight matrix of ``model`` that LoRA can adapt, in the order of ``named_modules()``.

    Only names, classes and shapes are read, never a weight, so a model on the meta device works too.

    Args:
        model: A base model without adapters; any ``torch.nn.Module``, best understood when it is a transformers model.

    Returns:
        One ``Target`` per matrix: linear layers, GPT-2's ``Conv1D``, embeddings, fused expert tensors and routers.

    Raises:
        UserError: ``model`` is not a module, already carries adapter layers, or has nothing to adapt.
    """
    # Imported on call: planning from a saved profile needs targets, but not torch.
    from tailora.targets.discover import find_targets as discover

    return discover(model)
