"""FIM-LoRA's published score: squared *batch-mean* gradients of a fresh LoRA's B, kept for reproduction."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tailora.targets import Target

PUBLISHED_RANK = 8


class BatchFisherOfB:
    """Mean over B's elements of the squared batch-mean gradient, averaged over batches.

    FIM-LoRA (Kernel-ML/fim-lora-experiments, 2026) scores a matrix by the gradient of ``lora_B`` at initialisation,
    where ``dL/dB = G A^T`` (scale left out) and A's own gradient is zero because B is.  Squaring a batch's mean
    gradient is *not* a Fisher: for batches of size b it tends to ``E[g^2]/b + (1 - 1/b) E[g]^2``.  A is drawn like
    peft's default (Kaiming uniform, bound ``1/sqrt(in)``), privately, from the seed and the target's name.
    """

    def __init__(self, targets: Sequence[Target], seed: int = 0) -> None:
        """Start at zero; ``seed`` makes every A."""
        self._targets = targets
        self._seed = seed
        self._factors: dict[int, Tensor] = {}
        self._batch: dict[int, Tensor] = {}
        self._sums: list[Tensor | None] = [None] * len(targets)
        self._batches = 0

    def update(self, index: int, chunk: Tensor) -> None:
        """Add some examples' gradients ``[m, experts, out, in]`` to the running batch."""
        total = chunk.sum(dim=0) @ self._factor(index, chunk).T
        held = self._batch.get(index)
        self._batch[index] = total if held is None else held + total

    def end_batch(self, examples: int) -> None:
        """Square the batch's mean gradient and start the next batch."""
        if not examples:
            self._batch.clear()
            return
        for index, total in self._batch.items():
            square = (total / examples).double().square().mean()
            held = self._sums[index]
            self._sums[index] = square if held is None else held + square
        self._batch.clear()
        self._batches += 1

    def result(self) -> np.ndarray:
        """Return float64 ``[n_targets]``."""
        sums = [0.0 if total is None else float(total) for total in self._sums]
        return np.array(sums, dtype=np.float64) / max(self._batches, 1)

    def _factor(self, index: int, like: Tensor) -> Tensor:
        """Return the target's A, ``[rank, in]``, drawn once."""
        if index not in self._factors:
            target = self._targets[index]
            digest = hashlib.sha256(f"{self._seed}:{target.name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            rank, inputs = min(PUBLISHED_RANK, target.max_rank), target.shape[1]
            drawn = torch.rand(rank, inputs, generator=generator, dtype=torch.float64) * 2 - 1
            self._factors[index] = (drawn / math.sqrt(inputs)).to(like.device, like.dtype)
        return self._factors[index]
