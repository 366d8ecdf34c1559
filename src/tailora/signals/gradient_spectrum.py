"""Singular values of the calibration gradient, the mean over examples of each weight's gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tailora.targets import Target

MAX_VALUES = 256
"""Leading singular values kept per target: more ranks than any plan spends on one matrix."""


class GradientSpectrum:
    """Leading singular values of ``1/N sum_n G_n`` per target, in descending order.

    By Eckart and Young (1936) the k largest squared values are what a rank-k step can capture of a full gradient step.
    For stacked experts, whose LoRA has one rank for all, the k-th value is ``sqrt(sum_e sigma_ek^2)``.  Unit: nats.
    """

    def __init__(self, targets: Sequence[Target], seed: int = 0) -> None:
        """Start at zero; ``seed`` is not used."""
        self._width = min(MAX_VALUES, max((target.max_rank for target in targets), default=0))
        self._sums: list[Tensor | None] = [None] * len(targets)
        self._examples = 0

    def update(self, index: int, chunk: Tensor) -> None:
        """Add some examples' gradients ``[m, experts, out, in]``."""
        total = chunk.sum(dim=0)
        held = self._sums[index]
        self._sums[index] = total if held is None else held.add_(total)

    def end_batch(self, examples: int) -> None:
        """Count the examples of a batch."""
        self._examples += examples

    def result(self) -> np.ndarray:
        """Return float64 ``[n_targets, k]``, padded with zeros beyond a matrix's smaller side."""
        spectra = np.zeros((len(self._sums), self._width), dtype=np.float64)
        for index, total in enumerate(self._sums):
            if total is None:
                continue
            values = torch.linalg.svdvals(total / max(self._examples, 1))
            combined = values.double().square().sum(dim=0).sqrt().cpu().numpy()[: self._width]
            spectra[index, : len(combined)] = combined
        return spectra
