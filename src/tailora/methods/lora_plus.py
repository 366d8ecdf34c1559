"""LoRA+: B learns faster than A by a constant ratio (Hayou et al. 2024, arXiv 2402.12354), through peft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tailora.methods.base import OptimizerSettings, TrainingMethod, positive

if TYPE_CHECKING:
    import torch


def _build(model: Any, settings: OptimizerSettings, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Build peft's optimizer; ``ratio`` is the learning rate of B over that of A."""
    import torch
    from peft.optimizers import create_loraplus_optimizer

    return create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=settings.learning_rate,
        loraplus_lr_ratio=positive(options, "ratio"),
        loraplus_weight_decay=settings.weight_decay,
    )


METHOD = TrainingMethod(_build, {"ratio": 16.0})
