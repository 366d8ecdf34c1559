"""Per-example weight gradients of one target in one batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**25
"""Elements of per-example gradient held at once: 128 MiB in float32."""


@dataclass(frozen=True)
class ExampleGradients:
    """The gradients ``G_n = sum_t g_t a_t^T`` of one target for the examples of one batch.

    Exactly one of the two forms is given: inputs and output gradients, or the gradients themselves.

    Attributes:
        inputs: ``a``, ``[n, t, in]``.
        output_gradients: ``g``, ``[n, t, out]``: gradients of each example's own loss.
        weights: ``[n, experts, out, in]`` where they were taken directly.
    """

    inputs: Tensor | None = None
    output_gradients: Tensor | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of examples."""
        held = self.inputs if self.weights is None else self.weights
        return 0 if held is None else len(held)

    def chunks(self) -> Iterator[Tensor]:
        """Yield per-example gradients ``[m, experts, out, in]``, few enough examples at a time to bound memory.

        Products are taken in at least float32, whatever the model computes in.
        """
        if self.weights is not None:
            yield self.weights.to(accumulator_dtype(self.weights.dtype))
            return
        if self.inputs is None or self.output_gradients is None:
            return
        dtype = accumulator_dtype(self.inputs.dtype)
        size = self.inputs.shape[2] * self.output_gradients.shape[2]
        step = max(1, CHUNK_ELEMENTS // max(size, 1))
        for start in range(0, len(self.inputs), step):
            a = self.inputs[start : start + step].to(dtype)
            g = self.output_gradients[start : start + step].to(dtype)
            yield torch.bmm(g.transpose(1, 2), a).unsqueeze(1)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a model's statistics are summed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
