"""Preconditioned conjugate gradients over a list of matrices, stopped early."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from tailora.errors import ProfileError

Vector = list[Tensor]
"""One matrix per target."""
PATIENCE = 4
"""Iterations in a row without more worth after which a judge has seen enough."""


@dataclass(frozen=True)
class Solution:
    """What the iterations found.

    Attributes:
        step: The minimiser so far, or the iterate that the judge valued most.
        decreases: After each iteration, by how much the quadratic model lies below its value at zero.
        stopped: Why it ended before the iterations asked for; empty where it did not.
        worths: What the judge said after each iteration; empty without one.
    """

    step: Vector
    decreases: tuple[float, ...]
    stopped: str
    worths: tuple[float, ...] = ()

    @property
    def chosen(self) -> int:
        """The iteration after which the step was taken, from 1; 0 where there was none."""
        if not self.worths:
            return len(self.decreases)
        return 1 + max(range(len(self.worths)), key=self.worths.__getitem__)


def minimise(
    product: Callable[[Vector], Vector],
    gradient: Sequence[Tensor],
    precondition: Callable[[Vector], Vector],
    iterations: int,
    rounding: float = 2.0**-52,
    judge: Callable[[Vector], float] | None = None,
) -> Solution:
    """Go towards the minimum of ``<G, D> + 1/2 <D, H D>`` from ``D = 0``.

    Source: Hestenes and Stiefel 1952; preconditioned as in Martens 2010, Deep learning via Hessian-free optimization.
    Inner products are summed in float64.  Where a direction has no positive curvature the iterations end before it.

    Args:
        product: H times a vector; changes nothing.
        gradient: G.
        precondition: Times an approximate, positive semidefinite inverse of H.
        iterations: At most so many.
        rounding: Relative, of G and of the products; the iterations end where the residual's square has sunk to that
            share of the first one's, before what is left of it are the products' errors.
        judge: Says what an iterate is worth to others; the iterate of most worth is returned, and the iterations end
            when ``PATIENCE`` of them in a row were worth no more.

    Returns:
        The step.

    Raises:
        ProfileError: Something is not finite.
    """
    step = [matrix.new_zeros(matrix.shape) for matrix in gradient]
    residual = [-matrix for matrix in gradient]
    scaled = precondition(residual)
    direction = [matrix.clone() for matrix in scaled]
    sharpness = first = inner(residual, scaled)
    least = first * rounding
    decreases: list[float] = []
    worths: list[float] = []
    best = step
    stopped, since = "", 0
    for number in range(1, iterations + 1):
        if not math.isfinite(sharpness):
            raise ProfileError(_not_finite(number))
        if sharpness <= least:
            stopped = "nothing left to solve"
            break
        curved = product(direction)
        curvature = inner(direction, curved)
        if not math.isfinite(curvature):
            raise ProfileError(_not_finite(number))
        if curvature <= 0:
            stopped = "no positive curvature"
            break
        size = sharpness / curvature
        for at, matrix in enumerate(direction):
            step[at].add_(matrix, alpha=size)
            residual[at].sub_(curved[at], alpha=size)
        decreases.append((decreases[-1] if decreases else 0.0) + size * sharpness / 2)
        if judge is not None:
            worths.append(judge(step))
            if worths[-1] > max(worths[:-1], default=-math.inf):
                best, since = [matrix.clone() for matrix in step], number
            elif number - since >= PATIENCE:
                stopped = "held-out examples gain no more"
                break
        scaled = precondition(residual)
        before, sharpness = sharpness, inner(residual, scaled)
        for at, matrix in enumerate(scaled):
            direction[at].mul_(sharpness / before).add_(matrix)
    if not math.isfinite(sharpness):
        raise ProfileError(_not_finite(len(decreases)))
    return Solution(best, tuple(decreases), stopped, tuple(worths))


def inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the inner product of two vectors.

    Args:
        one: A vector.
        other: Another one.

    Returns:
        The sum over all elements, taken in float64.
    """
    return math.fsum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))


def _not_finite(number: int) -> str:
    return (
        f"iteration {number} of the Newton step is not finite; look at the calibration examples, or profile in float32"
    )
