"""Standard training: the Trainer's own AdamW over everything that requires a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailora.methods.base import OptimizerSettings, TrainingMethod


def _build(model: Any, settings: OptimizerSettings, options: Mapping[str, Any]) -> None:
    return None


METHOD = TrainingMethod(_build, {})
