"""The tasks a run can learn; one file each."""

from __future__ import annotations

from tailora.registry import Registry
from tailora.tasks.base import Examples, LoadedModel, Splits, Task
from tailora.tasks.causal_lm import CausalLM
from tailora.tasks.image_classification import ImageClassification
from tailora.tasks.multiple_choice import MultipleChoice
from tailora.tasks.regression import Regression
from tailora.tasks.seq2seq import Seq2Seq
from tailora.tasks.text_classification import TextClassification
from tailora.tasks.token_classification import TokenClassification

TASKS: Registry[Task] = Registry("task")
TASKS.add(
    "text-classification",
    TextClassification(),
    summary="one class per text or pair of texts; accuracy, F1, Matthews",
)
TASKS.add("regression", Regression(), summary="one score per text or pair of texts; Pearson, Spearman")
TASKS.add("multiple-choice", MultipleChoice(), summary="the likeliest of given answers on a causal model; accuracy")
TASKS.add("token-classification", TokenClassification(), summary="one tag per word; token F1, accuracy")
TASKS.add("seq2seq", Seq2Seq(), summary="one text for another; token-weighted loss, exact match, ROUGE-L")
TASKS.add("image-classification", ImageClassification(), summary="one class per image; accuracy, F1, Matthews")
TASKS.add(
    "causal-lm",
    CausalLM(),
    summary="next-token prediction on text, prompt-completion pairs, chats and instructions; token-weighted loss",
)

__all__ = ["TASKS", "Examples", "LoadedModel", "Splits", "Task"]
