"""Squared norms of the examples' gradients of a fresh LoRA's B."""

from __future__ import annotations

from torch import Tensor

from tailora.signals.base import Context
from tailora.signals.fresh_factors import FRESH_RANK, fresh_a
from tailora.signals.observations import Observation, wide
from tailora.signals.statistics.example_norms import ExampleNorms


class ExampleB(ExampleNorms):
    """``sum_n ||G_n A^T||_F^2`` per target for the A that a fresh LoRA starts from."""

    def __init__(self, context: Context) -> None:
        """Start at zero."""
        super().__init__(context)
        self._rank = int(context.options.get("fresh_rank", FRESH_RANK))
        self._factors: dict[int, Tensor] = {}

    def update(self, index: int, seen: Observation) -> None:
        """Add the squared norms of some examples' gradients of B."""
        if seen.weights is not None:
            weights = wide(seen.weights)
            projected = Observation(weights=weights @ self._factor(index, weights).T, halves=seen.halves)
        else:
            assert seen.inputs is not None
            inputs = wide(seen.inputs)
            low = inputs @ self._factor(index, inputs).T
            projected = Observation(low, seen.output_gradients, halves=seen.halves)
        super().update(index, projected)

    def _factor(self, index: int, like: Tensor) -> Tensor:
        if index not in self._factors:
            drawn = fresh_a(self.context.targets[index], self.context.seed, self._rank)
            self._factors[index] = drawn.to(like.device, like.dtype)
        return self._factors[index]
