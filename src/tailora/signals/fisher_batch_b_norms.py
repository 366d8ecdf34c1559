"""FIM-LoRA's published score with other aggregations over a matrix than the mean, for its ablation."""

from __future__ import annotations

from typing import Any

import numpy as np

from tailora.signals.base import Context
from tailora.signals.statistics.batch_b_elements import BatchBElements


def fisher_batch_b_max(context: Context, statistics: Any) -> np.ndarray:
    """Return the largest, over B's elements, of the squared batch-mean gradient averaged over batches.

    What is aggregated is that of ``fisher_batch_b``, whose score is the mean over the elements (FIM-LoRA's research
    plan, ablation B: mean, max, L2 norm).  With one example a batch it is an element of the empirical Fisher of B.

    Args:
        context: Not used.
        statistics: With ``BatchBElements``.

    Returns:
        float64 ``[n_targets]``.  Unit: nats squared.
    """
    return np.array([float(mean.max()) for mean in statistics[BatchBElements].means()])


def fisher_batch_b_l2(context: Context, statistics: Any) -> np.ndarray:
    """Return the Euclidean norm, over B's elements, of the squared batch-mean gradients averaged over batches.

    It grows with the root of the number of elements, so a wide matrix scores higher than by the mean.

    Args:
        context: Not used.
        statistics: With ``BatchBElements``.

    Returns:
        float64 ``[n_targets]``.  Unit: nats squared.
    """
    return np.array([float(mean.norm()) for mean in statistics[BatchBElements].means()])
