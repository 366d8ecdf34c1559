"""Fisher trace per target: the mean over examples of the squared gradient of the full weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tailora.targets import Target


class FisherTrace:
    """Trace of the empirical Fisher of each weight.

    ``F = 1/N sum_n ||G_n||_F^2`` with ``G_n`` the gradient of example n's own loss under its data label (Sung et al.
    2021, arXiv 2111.09839, eq. 5, summed over the elements of a matrix).  It is the mean over *examples* of squares,
    never the square of a batch mean.  Unit: nats squared.
    """

    def __init__(self, targets: Sequence[Target], seed: int = 0) -> None:
        """Start at zero; ``seed`` is not used."""
        # Sums stay on the gradients' device until the end: one synchronisation, not one a target a batch.
        self._sums: list[Tensor | None] = [None] * len(targets)
        self._examples = 0

    def update(self, index: int, chunk: Tensor) -> None:
        """Add the squared norms of some examples' gradients ``[m, experts, out, in]``."""
        norms = torch.linalg.vector_norm(chunk.reshape(len(chunk), -1), dim=1, dtype=torch.float64).square().sum()
        held = self._sums[index]
        self._sums[index] = norms if held is None else held + norms

    def end_batch(self, examples: int) -> None:
        """Count the examples of a batch."""
        self._examples += examples

    def result(self) -> np.ndarray:
        """Return float64 ``[n_targets]``."""
        sums = [0.0 if total is None else float(total) for total in self._sums]
        return np.array(sums, dtype=np.float64) / max(self._examples, 1)
