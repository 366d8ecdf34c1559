"""The tasks a run can learn; one file each."""

from __future__ import annotations

from tailora.registry import Registry
from tailora.tasks.base import Examples, LoadedModel, Splits, Task
from tailora.tasks.causal_lm import CausalLM
from tailora.tasks.text_classification import TextClassification

TASKS: Registry[Task] = Registry("task")
TASKS.add(
    "text-classification",
    TextClassification(),
    summary="one class per text or pair of texts; accuracy",
)
TASKS.add(
    "causal-lm",
    CausalLM(),
    summary="next-token prediction on plain text, documents or prompt-completion pairs; token-weighted loss",
)

__all__ = ["TASKS", "Examples", "LoadedModel", "Splits", "Task"]
