"""What a signal is: a statistic of per-example gradients, streamed batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from tailora.targets import Target


class Accumulator(Protocol):
    """Collects one signal over the calibration batches."""

    def update(self, index: int, chunk: Tensor) -> None:
        """Take in some examples' gradients of target ``index``, ``[m, experts, out, in]``."""
        ...

    def end_batch(self, examples: int) -> None:
        """Close a batch in which ``examples`` examples counted."""
        ...

    def result(self) -> np.ndarray:
        """Return the signal, first axis in target order."""
        ...


@dataclass(frozen=True, slots=True)
class Signal:
    """A registered signal.

    Attributes:
        start: Makes an accumulator for a list of targets and a seed.
        unit: What one value is measured in.
        shape: Shape of the result, in words.
    """

    start: Callable[[Sequence[Target], int], Accumulator]
    unit: str
    shape: str
