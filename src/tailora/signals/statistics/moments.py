"""Second moments of a layer's inputs and output gradients, in streaming form."""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from tailora.signals.base import Context, Statistic
from tailora.signals.fresh_factors import private_generator
from tailora.signals.observations import Observation, wide
from tailora.signals.statistics.squares import refuse_infinite

MOMENT_SKETCH = 64
"""Width of the sketch of a second moment; half as many eigenvalues are read from it."""

_WHOLE = 8
"""Moments up to so many times the sketch's width are kept whole: real activations have long tails, and what a sketch
reads of them is 25 to 40 % too small (measured on a sentence encoder of width 384)."""

_PANEL = 96
"""Width of the panels of a symmetric product: narrow enough to save a third at 384, wide enough to be fast."""

_REMEMBERED = 4
"""How many tensors are remembered for sharing; query, key, value and gate, up follow each other."""

Sums = dict[str, Tensor]


class Moments(Statistic):
    """Count, sum, squared length and second moment of vectors, per target.

    The second moment ``sum v v^T`` of width ``d`` is kept whole up to ``d = 8 k`` and as ``(sum v v^T) Omega`` with a
    Gaussian ``Omega [d, k]`` beyond, from which Nystrom's approximation returns the leading part.  The context's option
    ``moment_sketch`` sets ``k``; 0 keeps every moment whole.  Where several targets read the very same tensor (query,
    key and value; gate and up) the products are taken once.
    """

    def __init__(self, context: Context) -> None:
        """Start at zero."""
        super().__init__(context)
        self.width = int(context.options.get("moment_sketch", MOMENT_SKETCH))
        self._sums: dict[int, Sums] = {}
        self._omegas: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}
        # The tensors themselves are held, so that an address cannot be taken by another one in between.
        self._recent: deque[tuple[Tensor, int, Sums]] = deque(maxlen=_REMEMBERED)
        self._decomposed: deque[tuple[Sums, bool, tuple[Tensor, float]]] = deque(maxlen=_REMEMBERED)

    what: ClassVar[str]

    @abc.abstractmethod
    def vectors(self, seen: Observation) -> Tensor | None:
        """Return what is summed, ``[n, t, d]``."""

    @abc.abstractmethod
    def size(self, index: int) -> int:
        """Return the width ``d`` of a target's vectors."""

    def update(self, index: int, seen: Observation) -> None:
        """Add the vectors at real positions."""
        vectors = self.vectors(seen)
        if vectors is None:
            return
        self._decomposed.clear()
        added = self._products(vectors, seen.real)
        held = self._sums.get(index)
        if held is None:
            self._sums[index] = {name: tensor.clone() for name, tensor in added.items()}
        else:
            for name, tensor in added.items():
                held[name].add_(tensor)

    def end_batch(self, examples: int) -> None:
        """Forget the batch's tensors."""
        self._recent.clear()

    def eigenvalues(self, index: int, *, centred: bool) -> tuple[Tensor, float]:
        """Return the leading eigenvalues of the second moment and the sum of all of them.

        Args:
            index: The target.
            centred: Whether the mean is taken out first, which makes it the covariance.

        Returns:
            Eigenvalues in descending order, float64 on the host, and the trace; empty and 0 without any vector.

        Raises:
            ProfileError: A vector was not finite.
        """
        sums = self._sums.get(index)
        if sums is None or not int(sums["count"]):
            return torch.zeros(0, dtype=torch.float64), 0.0
        refuse_infinite(self.what, self.context.targets[index].name, sums["squares"])
        for other, asked, found in self._decomposed:
            if asked == centred and all(torch.equal(other[name], sums[name]) for name in ("count", "sum", "moment")):
                return found  # query, key and value read one tensor, and several signals these eigenvalues
        found = self._decompose(sums, centred=centred)
        self._decomposed.append((sums, centred, found))
        return found

    def _decompose(self, sums: Sums, *, centred: bool) -> tuple[Tensor, float]:
        """Return the eigenvalues and the trace of one target's sums."""
        count, moment = int(sums["count"]), sums["moment"].double().cpu()
        mean, moment = sums["sum"].double().cpu() / count, moment / count
        trace = float(sums["squares"]) / count
        omega = self._omega(len(moment), moment) if self._sketched(len(moment)) else None
        if centred:
            trace -= float(mean @ mean)
            moment -= torch.outer(mean, mean if omega is None else mean @ omega)
        if omega is None:
            values = torch.linalg.eigvalsh((moment + moment.T) / 2).flip(0).clamp(min=0.0)
        else:
            values = nystrom(moment, omega)[: self.width // 2]
        return values, max(trace, 0.0)

    def state(self) -> dict[str, Tensor]:
        """Return the sums of every target."""
        found: dict[str, Tensor] = {}
        for index, _ in enumerate(self.context.targets):
            size = self.size(index)
            wide_side = self.width if self._sketched(size) else size
            empty = {
                "count": torch.zeros((), dtype=torch.int64),
                "squares": torch.zeros((), dtype=torch.float64),
                "sum": torch.zeros(size, dtype=torch.float64),
                "moment": torch.zeros(size, wide_side),
            }
            found |= {f"{index}.{name}": tensor for name, tensor in self._sums.get(index, empty).items()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the sums."""
        self._sums = {}
        for index, _ in enumerate(self.context.targets):
            sums = {name: state[f"{index}.{name}"].clone() for name in ("count", "squares", "sum", "moment")}
            if int(sums["count"]):
                self._sums[index] = sums

    def _products(self, vectors: Tensor, real: Tensor | None) -> Sums:
        """Return what a tensor adds, from memory where it was just seen."""
        for tensor, version, sums in self._recent:
            same = tensor.data_ptr() == vectors.data_ptr() and tensor.stride() == vectors.stride()
            if same and tensor.shape == vectors.shape and version == vectors._version:
                return sums
        flat = wide(vectors).flatten(0, 1)
        # A look at the mask saves a copy; on a GPU it would wait for what is still under way.
        if real is None or (flat.device.type == "cpu" and bool(real.all())):
            count = torch.tensor(len(flat), device=flat.device)
        else:
            # Zeros add nothing, and a product is cheaper than cutting rows out.
            keep = real.flatten()
            flat, count = flat * keep.unsqueeze(1).to(flat.dtype), keep.sum()
        if self._sketched(flat.shape[1]):
            # Seen from the side: a fifth faster on a CPU than the product as written.
            moment = ((flat @ self._omega(flat.shape[1], flat)).T @ flat).T
            squares = torch.linalg.vector_norm(flat).double().square()
        else:
            moment = gram(flat)
            squares = moment.diagonal().sum(dtype=torch.float64)
        # Within a batch in the vectors' own precision, between batches in float64.
        sums = {"count": count, "squares": squares, "sum": flat.sum(dim=0).double(), "moment": moment}
        self._recent.append((vectors, vectors._version, sums))
        return sums

    def _sketched(self, size: int) -> bool:
        return 0 < _WHOLE * self.width < size

    def _omega(self, size: int, like: Tensor) -> Tensor:
        """Return the test matrix of a width: one for all targets, so that products can be shared."""
        key = (size, like.device, like.dtype)
        if key not in self._omegas:
            generator = private_generator(self.context.seed, "moment", str(size))
            drawn = torch.randn(size, self.width, generator=generator, dtype=torch.float32)
            self._omegas[key] = drawn.to(like.device, like.dtype)
        return self._omegas[key]


class InputMoments(Moments):
    """Moments of a target's inputs over all real positions; ``E[a a^T]`` is K-FAC's input factor."""

    source, what = "inputs", "inputs"

    def vectors(self, seen: Observation) -> Tensor | None:
        """Return the inputs."""
        return seen.inputs

    def size(self, index: int) -> int:
        """Return the width of the inputs."""
        return self.context.targets[index].shape[1]


class OutputGradientMoments(Moments):
    """Moments of the gradients at a target's outputs over all real positions: K-FAC's output factor."""

    source, what = "gradients", "output gradients"

    def vectors(self, seen: Observation) -> Tensor | None:
        """Return the output gradients."""
        return seen.output_gradients

    def size(self, index: int) -> int:
        """Return the width of the outputs."""
        return self.context.targets[index].shape[0]


def gram(rows: Tensor) -> Tensor:
    """Return ``rows^T rows``, on a CPU without computing what symmetry gives.

    Args:
        rows: ``[n, d]``.

    Returns:
        ``[d, d]``.
    """
    size = rows.shape[1]
    if rows.device.type != "cpu" or size < 2 * _PANEL:
        return rows.T @ rows
    found = rows.new_empty(size, size)
    for start in range(0, size, _PANEL):
        stop = min(start + _PANEL, size)
        torch.mm(rows[:, start:stop].T, rows[:, start:], out=found[start:stop, start:])
        found[stop:, start:stop] = found[start:stop, stop:].T
    return found


def nystrom(moment: Tensor, omega: Tensor) -> Tensor:
    """Return eigenvalues of a positive semi-definite matrix known by its product with a test matrix.

    Tropp, Yurtsever, Udell and Cevher 2017 (arXiv 1706.05736), algorithm 3: a small shift keeps the inner matrix
    positive definite and is taken out again.

    Args:
        moment: ``C Omega``, float64 ``[d, k]``.
        omega: ``Omega``, float64 ``[d, k]``.

    Returns:
        float64 ``[k]`` in descending order; the leading ones are close, the last ones too small.
    """
    shift = float(torch.linalg.vector_norm(moment)) * 1e-12 * len(moment) ** 0.5
    shifted = moment + shift * omega
    inner = omega.T @ shifted
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    keep = values > values.max() * 1e-13
    root = vectors[:, keep] / values[keep].sqrt()
    singular = torch.linalg.svdvals(shifted @ root)
    return torch.cat([(singular.square() - shift).clamp(min=0.0), moment.new_zeros(len(values) - len(singular))])
