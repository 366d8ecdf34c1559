"""Evaluation of language models with EleutherAI's lm-eval, used as a library on the adapted model in memory.

Source: https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

from tailora.harness.measure import Measured, check_fit, check_harness, measure

__all__ = ["Measured", "check_fit", "check_harness", "measure"]
