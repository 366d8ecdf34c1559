"""Squared norms of the examples' gradients, one number a target and half of the data."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tailora.signals.base import Context, Statistic
from tailora.signals.observations import Observation


class ExampleNorms(Statistic):
    """``sum_n ||G_n||_F^2`` per target, the examples of the two halves apart."""

    source = "gradients"

    def __init__(self, context: Context) -> None:
        """Start at zero."""
        super().__init__(context)
        # Sums stay on the gradients' device until the end: one synchronisation, not one a target a batch.
        self._sums: list[Tensor | None] = [None] * len(context.targets)
        self.examples = 0

    def update(self, index: int, seen: Observation) -> None:
        """Add the squared norms of some examples' gradients."""
        norms = seen.squared_norms()
        halves = seen.halves.to(norms.device)
        sums = torch.zeros(2, dtype=torch.float64, device=norms.device).index_add_(0, halves, norms)
        held = self._sums[index]
        self._sums[index] = sums if held is None else held.add_(sums)

    def end_batch(self, examples: int) -> None:
        """Count the examples of a batch."""
        self.examples += examples

    def halves(self) -> Tensor:
        """Return the sums, float64 ``[n_targets, 2]`` on the host."""
        zero = torch.zeros(2, dtype=torch.float64)
        return torch.stack([zero if held is None else held.cpu() for held in self._sums])

    def state(self) -> dict[str, Tensor]:
        """Return ``sums`` ``[n_targets, 2]`` and ``examples`` ``[]``."""
        return {"sums": self.halves(), "examples": torch.tensor(self.examples)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the sums."""
        self._sums = list(state["sums"].double().unbind())
        self.examples = int(state["examples"])
