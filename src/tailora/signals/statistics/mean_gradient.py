"""The sum of the examples' gradients per target and half: whole where it is small, sketched where it is not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tailora.signals.base import Context, Statistic
from tailora.signals.observations import Observation, accumulator_dtype
from tailora.signals.sketches import DEFAULT_SKETCH, TestMatrices, add_product, factors, sketch_pays, zeros


class MeanGradient(Statistic):
    """``sum_n G_n`` per target, the examples of the two halves apart.

    A matrix whose sketch costs less than itself (about 1,000 by 1,000 and up at the default width) is kept as a
    streaming sketch of ``(out + in) k + (2 k + 1)^2`` numbers a half, so nothing of the size of a large model's
    weights is held.  The context's option ``sketch`` sets ``k``; 0 keeps every matrix whole.
    """

    source = "gradients"

    def __init__(self, context: Context) -> None:
        """Start at zero."""
        super().__init__(context)
        self.width = int(context.options.get("sketch", DEFAULT_SKETCH))
        self._dense: dict[int, Tensor] = {}
        self._tests: dict[int, TestMatrices] = {}
        self._sketches: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
        self._values: dict[int, Tensor] = {}
        self.examples = [0, 0]

    def sketched(self, index: int) -> bool:
        """Tell whether a target is sketched.

        Args:
            index: The target.

        Returns:
            Whether only a sketch of its gradient is kept; gradients that were taken directly are there in whole.
        """
        target = self.context.targets[index]
        plain = target.kind in ("linear", "conv1d")
        return self.width > 0 and plain and sketch_pays(target.shape, self.width)

    def update(self, index: int, seen: Observation) -> None:
        """Add some examples' gradients."""
        self._values.clear()
        if not self.sketched(index):
            self._add(index, seen)
            return
        for half, a, g in seen.flat():
            if index not in self._sketches:
                tests = self._draw(index, a)
                self._sketches[index] = (zeros(tests), zeros(tests))
            add_product(self._sketches[index][half], self._tests[index], a, g)

    def _add(self, index: int, seen: Observation) -> None:
        """Add to a gradient that is kept whole, without a copy of its size in between."""
        totals = seen.totals()
        if totals is not None:
            self._whole(index, totals).add_(totals)
            return
        for half, a, g in seen.flat():
            self._whole(index, a)[half, 0].addmm_(g.T, a)

    def _whole(self, index: int, like: Tensor) -> Tensor:
        """Return the sums of a target, ``[2, experts, out, in]``, made on first use."""
        if index not in self._dense:
            target = self.context.targets[index]
            self._dense[index] = like.new_zeros(2, target.experts, *target.shape)
        return self._dense[index]

    def count(self, halves: Tensor) -> None:
        """Count examples.

        Args:
            halves: The half of each example that counts, int64 ``[n]``.
        """
        for half in (0, 1):
            self.examples[half] += int((halves == half).sum())

    def mean(self, index: int, half: int | None = None) -> Tensor | None:
        """Return the mean gradient of a target that is kept whole.

        Args:
            index: The target.
            half: One half's mean, or the mean over all examples.

        Returns:
            ``[experts, out, in]``; ``None`` where the loss never reached it.
        """
        held = self._dense.get(index)
        if held is None:
            return None
        total = held.sum(dim=0) if half is None else held[half]
        return total / max(sum(self.examples) if half is None else self.examples[half], 1)

    def approximate(self, index: int, half: int | None = None) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the leading factors of the mean gradient of a sketched target.

        Args:
            index: The target.
            half: One half's mean, or the mean over all examples.

        Returns:
            ``U``, singular values and ``V``; ``None`` where the loss never reached it.
        """
        if index not in self._sketches:
            return None
        first, second = self._sketches[index]
        sums = {name: first[name] + second[name] for name in first} if half is None else (first, second)[half]
        u, s, v = factors(sums, self._tests[index])
        return u, s / max(sum(self.examples) if half is None else self.examples[half], 1), v

    def values(self, index: int) -> Tensor | None:
        """Return the leading singular values of a sketched target's mean gradient; two signals read them.

        Args:
            index: The target.

        Returns:
            ``[k]`` in descending order; ``None`` where the loss never reached it.
        """
        if index not in self._values and (found := self.approximate(index)) is not None:
            self._values[index] = found[1]
        return self._values.get(index)

    def state(self) -> dict[str, Tensor]:
        """Return the sums of every target and the number of examples in each half."""
        found = {"examples": torch.tensor(self.examples)}
        dtype = accumulator_dtype(next((p.dtype for p in self.context.model.parameters()), torch.float32))
        for index, target in enumerate(self.context.targets):
            if self.sketched(index):
                if index not in self._sketches:
                    tests = self._draw(index, torch.empty(0, dtype=dtype))
                    self._sketches[index] = (zeros(tests), zeros(tests))
                for half, sums in enumerate(self._sketches[index]):
                    found |= {f"{index}.{half}.{name}": tensor for name, tensor in sums.items()}
            else:
                held = self._dense.get(index)
                found[str(index)] = torch.zeros(2, target.experts, *target.shape, dtype=dtype) if held is None else held
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the sums."""
        self.examples = [int(count) for count in state["examples"]]
        self._dense, self._sketches, self._values = {}, {}, {}
        for index, _ in enumerate(self.context.targets):
            if self.sketched(index):
                halves = [{name: state[f"{index}.{h}.{name}"] for name in ("rows", "columns", "core")} for h in (0, 1)]
                self._draw(index, halves[0]["core"])
                if any(bool(tensor.any()) for sums in halves for tensor in sums.values()):
                    self._sketches[index] = (halves[0], halves[1])
            elif bool(state[str(index)].any()):
                self._dense[index] = state[str(index)]

    def _draw(self, index: int, like: Tensor) -> TestMatrices:
        target = self.context.targets[index]
        self._tests[index] = TestMatrices.draw(target.name, target.shape, self.width, self.context.seed, like)
        return self._tests[index]
