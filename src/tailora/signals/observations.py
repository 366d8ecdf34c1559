"""What one target saw of some examples: its inputs and the gradients at its output, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**25
"""Elements of per-example gradient held at once: 128 MiB in float32."""


class Observation:
    """The inputs ``a`` and output gradients ``g`` of one target for some examples.

    The weight's gradient of example n is ``G_n = sum_t g_t a_t^T``.  Products are taken in at least float32, whatever
    the model computes in.  Results that several statistics ask for are computed once.

    Attributes:
        inputs: ``[n, t, in]``; ``None`` where the gradients were taken directly.
        output_gradients: ``[n, t, out]``: gradients of each example's own loss; ``None`` after a forward pass alone.
        weights: ``[n, experts, out, in]`` where the gradients were taken directly.
        halves: Which half of the data each example belongs to, 0 or 1, int64 ``[n]`` on the host.
        real: Which positions are tokens rather than padding, bool ``[n, t]``; ``None`` where all are.
        lengths: Positions of each call of the layer, which stand one behind the other.
    """

    lengths: tuple[int, ...] = ()

    def __init__(
        self,
        inputs: Tensor | None = None,
        output_gradients: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        halves: Tensor | None = None,
        real: Tensor | None = None,
    ) -> None:
        """Hold the tensors; nothing is computed or copied yet."""
        self.inputs, self.output_gradients, self.weights, self.real = inputs, output_gradients, weights, real
        self.halves = torch.zeros(len(self), dtype=torch.int64) if halves is None else halves
        self._norms: Tensor | None = None
        self._flat: list[tuple[int, Tensor, Tensor]] | None = None
        self._products: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of examples."""
        held = self.inputs if self.weights is None else self.weights
        return 0 if held is None else len(held)

    @property
    def device(self) -> torch.device:
        """Where it was seen."""
        held = self.inputs if self.weights is None else self.weights
        assert held is not None
        return held.device

    @property
    def has_gradients(self) -> bool:
        """Whether the loss reached the target."""
        return self.weights is not None or self.output_gradients is not None

    def finite(self) -> Tensor:
        """Return which examples' gradients are finite, bool ``[n]``.

        Squared norms that a statistic has asked for tell it at no cost.
        """
        if self._norms is not None:
            return torch.isfinite(self._norms)
        if not self.has_gradients:
            return torch.ones(len(self), dtype=torch.bool, device=self.device)
        held = self.weights if self.weights is not None else self.output_gradients
        assert held is not None
        return torch.isfinite(torch.linalg.vector_norm(wide(held).flatten(1), dim=1, ord=1))

    def rows(self, keep: Tensor) -> Observation:
        """Return some of the examples.

        Args:
            keep: bool ``[n]`` on the host.

        Returns:
            A new observation.
        """

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[keep.to(tensor.device)]

        return Observation(
            cut(self.inputs),
            cut(self.output_gradients),
            cut(self.weights),
            halves=self.halves[keep],
            real=cut(self.real),
        )

    def squared_norms(self) -> Tensor:
        """Return ``||G_n||_F^2``, float64 ``[n]``.

        ``||G_n||^2 = sum_ts (a_t . a_s)(g_t . g_s)`` (Goodfellow 2015, arXiv 1510.01799, extended to sequences by Li et
        al. 2022, arXiv 2110.05679) costs ``t^2 (in + out)`` per example and the matrix itself ``t in out``; the cheaper
        one is taken.
        """
        if self._norms is None:
            if self.weights is None and self._ghost_is_cheaper():
                assert self.inputs is not None
                assert self.output_gradients is not None
                a, g = wide(self.inputs), wide(self.output_gradients)
                products = torch.bmm(a, a.transpose(1, 2)).mul_(torch.bmm(g, g.transpose(1, 2)))
                # Terms of both signs cancel, so the last sum is taken in float64; it cannot be negative.
                self._norms = products.flatten(1).sum(dim=1, dtype=torch.float64).clamp_(min=0.0)
            else:
                norms = []
                for chunk in self.chunks():
                    norms.append(torch.linalg.vector_norm(chunk.flatten(1), dim=1))
                    # Kept for a sum over the examples, where all fit in one piece.
                    self._products = chunk if len(chunk) == len(self) else None
                self._norms = torch.cat(norms).double().square()
        return self._norms

    def totals(self) -> Tensor | None:
        """Return the sum over the examples of each half, ``[2, experts, out, in]``.

        Of gradients that were taken directly, or whose norms were; ``None`` where only a product of all positions
        would tell.
        """
        held = wide(self.weights) if self.weights is not None else self._products
        if held is None:
            return None
        return torch.stack([self._of_half(held, half).sum(dim=0) for half in (0, 1)])

    def _of_half(self, tensor: Tensor, half: int) -> Tensor:
        """Return the rows of one half; rows come sorted as a rule, and then nothing is copied."""
        rows = (self.halves == half).nonzero().flatten()
        if not len(rows):
            return tensor[:0]
        start, stop = int(rows[0]), int(rows[-1]) + 1
        return tensor[start:stop] if stop - start == len(rows) else tensor.index_select(0, rows.to(tensor.device))

    def flat(self) -> list[tuple[int, Tensor, Tensor]]:
        """Return, per half that occurs, inputs ``[positions, in]`` and output gradients ``[positions, out]``."""
        if self._flat is None:
            assert self.inputs is not None
            assert self.output_gradients is not None
            self._flat = []
            for half in (0, 1):
                if bool((self.halves == half).any()):
                    a, g = (self._of_half(tensor, half) for tensor in (self.inputs, self.output_gradients))
                    self._flat.append((half, wide(a).flatten(0, 1), wide(g).flatten(0, 1)))
        return self._flat

    def chunks(self) -> Iterator[Tensor]:
        """Yield per-example gradients ``[m, experts, out, in]``, few enough examples at a time to bound memory."""
        if self.weights is not None:
            yield wide(self.weights)
            return
        if self.inputs is None or self.output_gradients is None:
            return
        size = self.inputs.shape[2] * self.output_gradients.shape[2]
        step = max(1, CHUNK_ELEMENTS // max(size, 1))
        for start in range(0, len(self.inputs), step):
            a, g = wide(self.inputs[start : start + step]), wide(self.output_gradients[start : start + step])
            # The thin side first is two to three times faster on a CPU; the result is transposed back, not copied.
            if a.shape[2] < g.shape[2]:
                yield torch.bmm(a.transpose(1, 2), g).transpose(1, 2).unsqueeze(1)
            else:
                yield torch.bmm(g.transpose(1, 2), a).unsqueeze(1)

    def _ghost_is_cheaper(self) -> bool:
        assert self.inputs is not None
        assert self.output_gradients is not None
        length, inputs, outputs = self.inputs.shape[1], self.inputs.shape[2], self.output_gradients.shape[2]
        return length * (inputs + outputs) < inputs * outputs


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in the dtype its statistics are summed in.

    Args:
        tensor: Any floating tensor.

    Returns:
        Itself, or a float32 copy of a half-precision one.
    """
    return tensor.to(accumulator_dtype(tensor.dtype))


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a model's statistics are summed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
