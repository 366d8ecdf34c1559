"""Squared lengths of a layer's inputs and output gradients: the trace of a second moment without its matrix."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from tailora.errors import ProfileError
from tailora.signals.base import Context, Statistic
from tailora.signals.observations import Observation, wide


class Squares(Statistic):
    """``sum ||v||^2`` over real positions and their number, per target."""

    def __init__(self, context: Context) -> None:
        """Start at zero."""
        super().__init__(context)
        # Sums stay on the vectors' device until the end: one synchronisation, not one a target a batch.
        self._sums: list[Tensor | None] = [None] * len(context.targets)

    what: ClassVar[str]

    @abc.abstractmethod
    def vectors(self, seen: Observation) -> Tensor | None:
        """Return what is summed, ``[n, t, d]``."""

    def update(self, index: int, seen: Observation) -> None:
        """Add the squared lengths at real positions."""
        vectors = self.vectors(seen)
        if vectors is None:
            return
        vectors, real = wide(vectors), seen.real
        # A look at the mask saves a pass over the positions; on a GPU it would wait for what is still under way.
        if real is None or (vectors.device.type == "cpu" and bool(real.all())):
            whole = torch.linalg.vector_norm(vectors).double().square()
            added = torch.stack([whole, whole.new_tensor(vectors.shape[0] * vectors.shape[1])])
        else:
            squares = torch.linalg.vector_norm(vectors, dim=2).double().square()
            added = torch.stack([(squares * real).sum(), real.sum().double()])
        held = self._sums[index]
        self._sums[index] = added if held is None else held.add_(added)

    def means(self) -> Tensor:
        """Return the mean squared length per target, float64 ``[n_targets]`` on the host; 0 where nothing was seen.

        Raises:
            ProfileError: A vector was not finite.
        """
        sums = self.state()["sums"]
        for target, squares in zip(self.context.targets, sums[:, 0], strict=True):
            refuse_infinite(self.what, target.name, squares)
        return sums[:, 0] / sums[:, 1].clamp(min=1)

    def state(self) -> dict[str, Tensor]:
        """Return ``sums``, squared lengths and counts, float64 ``[n_targets, 2]``."""
        zero = torch.zeros(2, dtype=torch.float64)
        return {"sums": torch.stack([zero if held is None else held.cpu() for held in self._sums])}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the sums."""
        self._sums = list(state["sums"].double().unbind())


class InputSquares(Squares):
    """Squared lengths of a target's inputs."""

    source, what = "inputs", "inputs"

    def vectors(self, seen: Observation) -> Tensor | None:
        """Return the inputs."""
        return seen.inputs


class OutputGradientSquares(Squares):
    """Squared lengths of the gradients at a target's outputs."""

    source, what = "gradients", "output gradients"

    def vectors(self, seen: Observation) -> Tensor | None:
        """Return the output gradients."""
        return seen.output_gradients


def refuse_infinite(what: str, target: str, squares: Tensor) -> None:
    """Refuse a sum of squares that is not finite.

    Args:
        what: What was summed.
        target: Of which target.
        squares: The sum, ``[]``.

    Raises:
        ProfileError: It is infinite or no number.
    """
    if not bool(torch.isfinite(squares)):
        raise ProfileError(
            f"the {what} of {target!r} are not finite in some calibration example; profile in float32, or look for "
            "weights that are not finite"
        )
