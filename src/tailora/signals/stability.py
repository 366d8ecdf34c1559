"""Whether more calibration examples would still change the ranking of the targets."""

from __future__ import annotations

import numpy as np

from tailora.signals.base import Statistics
from tailora.signals.statistics.example_norms import ExampleNorms

_PATIENCE = 2
"""How many batches in a row must agree: one may agree by chance."""


class Stability:
    """The rank correlation between the two halves of the data, watched batch by batch."""

    def __init__(self, until: float | None, statistics: Statistics) -> None:
        """Watch.

        Args:
            until: The correlation that is enough; ``None`` never stops.
            statistics: With ``ExampleNorms`` where it can be watched.
        """
        self.until, self.statistics, self.agreed = until, statistics, 0

    def reached(self) -> bool:
        """Tell whether the halves have agreed for long enough."""
        if self.until is None:
            return False
        value = self.of(self.statistics)
        self.agreed = self.agreed + 1 if value is not None and value >= self.until else 0
        return self.agreed >= _PATIENCE

    @staticmethod
    def of(statistics: Statistics) -> float | None:
        """Return the Spearman correlation of the halves' Fisher traces over the targets.

        Args:
            statistics: The statistics of a pass.

        Returns:
            From -1 to 1; ``None`` without Fisher traces, with fewer than three targets, or with an empty half.
        """
        norms = statistics.get(ExampleNorms)
        if not isinstance(norms, ExampleNorms):
            return None
        halves = norms.halves().numpy()
        if len(halves) < 3 or not halves.any(axis=0).all():
            return None
        ranks = [np.argsort(np.argsort(column, kind="stable"), kind="stable") for column in halves.T]
        return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
