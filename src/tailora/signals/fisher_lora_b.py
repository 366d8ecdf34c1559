"""Fisher of the LoRA factors as a method sees them at the start: that of B, because A's is zero while B is."""

from __future__ import annotations

from typing import Any

import numpy as np

from tailora.signals.base import Context
from tailora.signals.statistics.example_b import ExampleB


def fisher_lora_b(context: Context, statistics: Any) -> np.ndarray:
    """Return ``1/N sum_n ||G_n A^T||_F^2`` per target for a fresh LoRA's A.

    At initialisation ``dl_n/dB = G_n A^T`` (scale left out) and ``dl_n/dA = B^T G_n = 0``, so this is the trace of the
    empirical Fisher of all of the adapter's parameters (Xue et al. 2025, arXiv 2504.04050, eq. 3).  A is drawn like
    peft's default from the seed and the target's name; the option ``fresh_rank`` sets its rank (default 8).  Unit: nats
    squared.

    Args:
        context: Not used.
        statistics: With ``ExampleB``.

    Returns:
        float64 ``[n_targets]``.
    """
    norms = statistics[ExampleB]
    return (norms.halves().sum(dim=1) / max(norms.examples, 1)).numpy()
