"""Scores with one record per example, so that runs can be compared example by example.

Losses are float32 cross entropies (or squared errors) summed in float64; no score depends on the batch size beyond
rounding.
"""

from __future__ import annotations

from tailora.evaluation.base import IGNORED, Evaluation, evaluating, with_texts
from tailora.evaluation.classification import classify, tag
from tailora.evaluation.generation import write
from tailora.evaluation.language import Question, choose, predict_tokens
from tailora.evaluation.regression import regress

__all__ = [
    "IGNORED",
    "Evaluation",
    "Question",
    "choose",
    "classify",
    "evaluating",
    "predict_tokens",
    "regress",
    "tag",
    "with_texts",
    "write",
]
