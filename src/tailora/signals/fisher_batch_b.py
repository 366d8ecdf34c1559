"""FIM-LoRA's published score, kept for reproduction."""

from __future__ import annotations

from typing import Any

import numpy as np

from tailora.signals.base import Context
from tailora.signals.statistics.batch_b import BatchB


def fisher_batch_b(context: Context, statistics: Any) -> np.ndarray:
    """Return the mean over B's elements of the squared batch-mean gradient, averaged over batches.

    FIM-LoRA (Kernel-ML/fim-lora-experiments, 2026) scores a matrix by the gradient of ``lora_B`` at initialisation,
    where ``dL/dB = G A^T`` (scale left out) and A's own gradient is zero because B is.  Squaring a batch's mean
    gradient is *not* a Fisher: for batches of size b it tends to ``E[g^2]/b + (1 - 1/b) E[g]^2``.

    Args:
        context: Not used.
        statistics: With ``BatchB``.

    Returns:
        float64 ``[n_targets]``.
    """
    held = statistics[BatchB]
    return (held.state()["sums"] / max(held.batches, 1)).numpy()
