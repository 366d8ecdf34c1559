"""Training methods: which optimizer trains the adapter; one file each."""

from __future__ import annotations

from tailora.methods import lora_plus, standard
from tailora.methods.base import OptimizerSettings, TrainingMethod
from tailora.registry import Registry

METHODS: Registry[TrainingMethod] = Registry("training method")
METHODS.add("standard", standard.METHOD, summary="AdamW as the Trainer sets it up")
METHODS.add(
    "lora-plus",
    lora_plus.METHOD,
    summary="AdamW with a larger learning rate for B",
    citation="Hayou et al. 2024, LoRA+: Efficient Low Rank Adaptation of Large Models, arXiv 2402.12354",
)

__all__ = ["METHODS", "OptimizerSettings", "TrainingMethod"]
