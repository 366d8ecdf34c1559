"""What an allocator is given, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tailora.errors import UserError
from tailora.targets import Target


@dataclass(frozen=True, slots=True)
class Problem:
    """One allocation problem: who competes, for how much, with what evidence.

    Attributes:
        targets: The candidates, in the model's order.
        unit_costs: Parameters that the k-th rank adds, int64 ``[n_targets, r_max]`` (column 0 is the first rank; DoRA's
            magnitude makes it dearer).
        signals: Signal name to array, first axis in the order of ``targets``.
        budget_params: Trainable parameters that may be spent.
        seed: For allocators that draw at random.
        options: The recipe's further options for this allocator.
    """

    targets: tuple[Target, ...]
    unit_costs: np.ndarray
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)
    budget_params: int = 0
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def r_max(self) -> int:
        """The largest rank any target may get."""
        return int(self.unit_costs.shape[1])

    @property
    def uniform_rank(self) -> float:
        """The (fractional) rank that the budget would buy on every target."""
        return self.budget_params / sum(target.cost(1) for target in self.targets)

    def signal(self, name: str) -> np.ndarray:
        """Return a signal as float64.

        Args:
            name: The signal's name.

        Returns:
            Array whose first axis is the targets'.

        Raises:
            UserError: The profile does not hold it.
        """
        if name not in self.signals:
            held = ", ".join(sorted(self.signals)) or "none"
            raise UserError(
                f"signal {name!r} is needed to allocate and the source holds {held}; "
                f"profile the model with signals=({name!r},) first"
            )
        return np.asarray(self.signals[name], dtype=np.float64)

    def per_rank(self, values: np.ndarray) -> np.ndarray:
        """Give values as many columns as there are ranks to deal.

        Args:
            values: ``[n_targets, k]``, the first column for the first rank.

        Returns:
            float64 ``[n_targets, r_max]``: what is beyond ``r_max`` is cut off, and what was not measured is zero.
        """
        found = np.zeros(self.unit_costs.shape, dtype=np.float64)
        columns = min(self.r_max, values.shape[1])
        found[:, :columns] = values[:, :columns]
        return found


Gains = Callable[[Problem], np.ndarray]
"""Marginal gains, float64 ``[n_targets, r_max]``, non-increasing along the rank axis."""

Ranks = Callable[[Problem], np.ndarray]
"""Prescribed ranks, int64 ``[n_targets]``: what a paper's own rule says, whatever it costs."""


@dataclass(frozen=True, slots=True)
class Allocator:
    """A way to value ranks.

    Attributes:
        gains: Fitted to any budget: what the k-th rank on each target is worth.
        faithful: The published integer rule, where the method has one of its own.
        needs: Default signal names; a recipe's option ``signal`` replaces the first.
        options: Names of the further options it understands.
    """

    gains: Gains
    faithful: Ranks | None = None
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
