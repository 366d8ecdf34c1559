"""FIM-LoRA's published score: squared *batch-mean* gradients of a fresh LoRA's B."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tailora.signals.base import Context, Statistic
from tailora.signals.fresh_factors import fresh_a
from tailora.signals.observations import Observation


class BatchB(Statistic):
    """Per target, the mean over B's elements of the squared batch-mean gradient, summed over batches."""

    source = "gradients"

    def __init__(self, context: Context) -> None:
        """Start at zero."""
        super().__init__(context)
        self._factors: dict[int, Tensor] = {}
        self._batch: dict[int, Tensor] = {}
        self._sums: list[Tensor | None] = [None] * len(context.targets)
        self.batches = 0

    def update(self, index: int, seen: Observation) -> None:
        """Add some examples' gradients to the running batch."""
        totals = seen.totals()
        if totals is None:
            factor = self._factor(index, seen.flat()[0][1])
            total = sum((g.T @ (a @ factor.T) for _, a, g in seen.flat()), start=torch.zeros((), device=factor.device))
        else:
            totals = totals.sum(dim=0)
            total = totals @ self._factor(index, totals).T
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
        self.batches += 1

    def state(self) -> dict[str, Tensor]:
        """Return ``sums`` ``[n_targets]`` and ``batches`` ``[]``."""
        zero = torch.zeros((), dtype=torch.float64)
        sums = torch.stack([zero if held is None else held.cpu() for held in self._sums])
        return {"sums": sums, "batches": torch.tensor(self.batches)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the sums."""
        self._sums = list(state["sums"].double().unbind())
        self.batches = int(state["batches"])

    def _factor(self, index: int, like: Tensor) -> Tensor:
        """Return the target's A, ``[rank, in]``, drawn once."""
        if index not in self._factors:
            drawn = fresh_a(self.context.targets[index], self.context.seed)
            self._factors[index] = drawn.to(like.device, like.dtype)
        return self._factors[index]
