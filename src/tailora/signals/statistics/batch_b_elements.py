"""FIM-LoRA's published squares element by element, for aggregations other than their mean."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tailora.signals.base import Context
from tailora.signals.fresh_factors import FRESH_RANK
from tailora.signals.statistics.batch_b import BatchB


class BatchBElements(BatchB):
    """Per target, the squared batch-mean gradient of every element of a fresh LoRA's B, summed over batches."""

    def __init__(self, context: Context) -> None:
        """Start at zero."""
        super().__init__(context)
        self._squares: dict[int, Tensor] = {}

    def end_batch(self, examples: int) -> None:
        """Square the batch's mean gradient and start the next batch."""
        if examples:
            for index, total in self._batch.items():
                square = (total / examples).double().square()
                held = self._squares.get(index)
                self._squares[index] = square if held is None else held + square
            self.batches += 1
        self._batch.clear()

    def means(self) -> list[Tensor]:
        """Return, per target, the mean over batches of the squares, float64 ``[experts * out * rank]`` on the host."""
        return [square / max(self.batches, 1) for square in self.state()["squares"].split(self._sizes())]

    def state(self) -> dict[str, Tensor]:
        """Return ``squares``, those of all targets one after the other, and ``batches`` ``[]``."""
        squares = []
        for index, size in enumerate(self._sizes()):
            held = self._squares.get(index)
            squares.append(torch.zeros(size, dtype=torch.float64) if held is None else held.flatten().cpu())
        return {"squares": torch.cat(squares), "batches": torch.tensor(self.batches)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the sums."""
        self._squares = dict(enumerate(state["squares"].double().split(self._sizes())))
        self.batches = int(state["batches"])

    def _sizes(self) -> list[int]:
        """Return the number of elements of each target's B, as ``fresh_a`` makes its A."""
        targets = self.context.targets
        return [target.experts * target.shape[0] * min(FRESH_RANK, target.max_rank) for target in targets]
