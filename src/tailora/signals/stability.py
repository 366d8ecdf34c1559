"""How the ranking of the targets settles as calibration examples come in, and when more would not change it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tailora.signals.base import Statistics
from tailora.signals.statistics.example_norms import ExampleNorms

_PATIENCE = 2
"""How many batches in a row must agree: one may agree by chance."""


class Stability:
    """The Fisher traces after every doubling of the examples, and the agreement of the data's two halves."""

    def __init__(self, until: float | None, statistics: Statistics) -> None:
        """Watch.

        Args:
            until: The rank correlation between the halves that is enough; ``None`` never stops.
            statistics: With ``ExampleNorms`` where there is something to watch.
        """
        self.until, self.agreed = until, 0
        norms = statistics.get(ExampleNorms)
        self._norms = norms if isinstance(norms, ExampleNorms) else None
        self._noted: list[tuple[int, np.ndarray]] = []
        self._next = 1

    def reached(self, examples: int) -> bool:
        """Take note of a batch and tell whether the halves have agreed for long enough.

        Args:
            examples: Examples so far.

        Returns:
            Whether to stop.
        """
        if self._norms is None:
            return False
        if examples >= self._next:
            self._noted.append((examples, self._norms.halves().sum(dim=1).numpy()))
            self._next = 2 * examples
        if self.until is None:
            return False
        value = self.agreement()
        self.agreed = self.agreed + 1 if value is not None and value >= self.until else 0
        return self.agreed >= _PATIENCE

    def state(self) -> dict[str, Tensor]:
        """Return what was noted, for an unfinished pass: ``examples [m]``, ``traces [m, n_targets]``, counts."""
        traces = [traces for _, traces in self._noted]
        return {
            "examples": torch.tensor([examples for examples, _ in self._noted], dtype=torch.int64),
            "traces": torch.from_numpy(np.stack(traces)) if traces else torch.zeros(0, 0, dtype=torch.float64),
            "counts": torch.tensor([self._next, self.agreed]),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state`` returned.

        Args:
            state: It.
        """
        self._noted = list(zip(state["examples"].tolist(), state["traces"].numpy(), strict=True))
        self._next, self.agreed = state["counts"].tolist()

    def agreement(self) -> float | None:
        """Return the Spearman correlation of the halves' Fisher traces over the targets.

        Returns:
            From -1 to 1; ``None`` without Fisher traces, with fewer than three targets, or with an empty half.
        """
        if self._norms is None:
            return None
        halves = self._norms.halves().numpy()
        return _spearman(halves[:, 0], halves[:, 1])

    def curve(self) -> list[tuple[int, float]]:
        """Return how alike the targets were ranked after each doubling of the examples and at the end.

        Returns:
            Examples, and the Spearman correlation of the Fisher traces then with those of all examples.
        """
        if self._norms is None or not self._noted:
            return []
        last = self._norms.halves().sum(dim=1).numpy()
        found = [(examples, _spearman(traces, last)) for examples, traces in self._noted]
        return [(examples, value) for examples, value in found if value is not None]


def _spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    if len(one) < 3 or not one.any() or not other.any():
        return None
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (one, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
