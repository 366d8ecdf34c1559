"""A Newton step of the mean calibration loss, stopped where held-out batches gain no more from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tailora.signals.base import Context
from tailora.signals.newton.conjugate import Solution, Vector, inner, minimise
from tailora.signals.newton.factors import Moments
from tailora.signals.newton.objective import Objective
from tailora.signals.newton.options import held_out_of, iterations_of, passes
from tailora.signals.newton.progress import Progress
from tailora.signals.newton.solvable import oriented
from tailora.signals.quiet import undisturbed

RELATIVE_DAMPING = 1e-6
"""Of the Gauss-Newton matrix, relative to its mean diagonal: only for the directions that no example touches."""


@dataclass(frozen=True)
class Step:
    """Where the conjugate gradients stopped.

    Attributes:
        measured: Each target's part of the step in K-FAC's measure, ``S^1/2 D A^1/2``, ``[out, in]``.
        problem: The objective on the batches that were solved for.
        held_out: On those that were not; ``None`` where none were held out.
        found: What the iterations found.
    """

    measured: list[Tensor]
    problem: Objective
    held_out: Objective | None
    found: Solution

    @property
    def agreement(self) -> float:
        """How much of the step the held-out examples confirm, from 0 to 1; not a number where none were held out.

        ``-<G', D> / sqrt(<D, H' D> <D, H D>)`` with gradient and Gauss-Newton matrix of the held-out examples with a
        prime: the root of what a step along D gains there, at its best length, over what D gains on its own examples.
        """
        if self.held_out is None:
            return math.nan
        if not self.found.chosen:
            return 0.0
        place = self.found.chosen - 1
        gained = self.found.decreases[place]
        return min(1.0, math.sqrt(max(self.found.worths[place], 0.0) / gained)) if gained > 0 else 0.0

    @property
    def examples(self) -> int:
        """Examples that counted, held-out ones among them."""
        return self.problem.examples + (0 if self.held_out is None else self.held_out.examples)

    @property
    def mean_loss(self) -> float:
        """Over all of them, in nats."""
        parts = [self.problem] if self.held_out is None else [self.problem, self.held_out]
        return sum(part.examples * part.mean_loss for part in parts) / self.examples

    def notes(self) -> dict[str, Any]:
        """Return what a profile's ``meta`` says of the step."""
        found = self.found
        notes: dict[str, Any] = {
            "iterations": len(found.decreases),
            "chosen": found.chosen,
            "passes": passes(len(found.decreases)),
            "predicted_decrease": found.decreases[found.chosen - 1] if found.chosen else 0.0,
            "decrease_by_iteration": list(found.decreases),
            "stopped": found.stopped,
        }
        if self.held_out is not None:
            notes["held_out"] = {
                "batches": len(self.held_out.batches),
                "examples": self.held_out.examples,
                "gain_by_iteration": list(found.worths),
                "agreement": self.agreement,
            }
        return notes


def step_towards(
    context: Context, chosen: Sequence[int], batches: Sequence[Mapping[str, Any]], how: Any, progress: Progress
) -> Step:
    """Go towards the minimum of the quadratic model of the mean loss of some batches.

    Some of the batches are held out.  After every iteration the best that a step along the iterate does to their
    quadratic model, ``<G', D>^2 / (2 <D, H' D>)`` where it goes down at all, is what the iterate is worth.

    Args:
        context: The model, the targets, the seed, and ``newton_iterations`` and ``newton_held_out`` among the options.
        chosen: Places of the targets that are solved for.
        batches: The batches.
        how: ``Collecting``.
        progress: Told of every batch.

    Returns:
        The step of most worth.
    """
    targets = [context.targets[index] for index in chosen]
    aside = held_out_places(len(batches), held_out_of(context.options))
    own = [place for place in range(len(batches)) if place not in aside]

    def objective(places: Sequence[int]) -> Objective:
        part = [batches[place] for place in places]
        return Objective(context.model, targets, part, how.loss, context.seed, places)

    with undisturbed(context.model, {}), torch.enable_grad():
        problem = objective(own)
        moments = Moments(targets, problem.weights)
        gradient = problem.begin(progress.one, moments)
        factors = moments.factors(problem.examples)
        damping = RELATIVE_DAMPING * sum(f.size for f in factors) / sum(matrix.numel() for matrix in gradient)
        held_out = objective(aside) if aside else None
        slope = held_out.begin(progress.one) if held_out is not None else []

        def judge(vector: Vector) -> float:
            assert held_out is not None
            down, curvature = -inner(slope, vector), held_out.curvature(vector, progress.one)
            return down**2 / (2 * curvature) if down > 0 and curvature > 0 else 0.0

        def product(vector: Vector) -> Vector:
            curved = problem.product(vector, progress.one)
            return [matrix.add_(part, alpha=damping) for matrix, part in zip(curved, vector, strict=True)]

        def precondition(vector: Vector) -> Vector:
            parts = zip(targets, factors, vector, strict=True)
            return [oriented(target, factor.divided(oriented(target, matrix))) for target, factor, matrix in parts]

        rounding = max(torch.finfo(weight.dtype).eps for weight in problem.weights)
        asked = judge if aside else None
        found = minimise(product, gradient, precondition, iterations_of(context.options), rounding, asked)
        parts = zip(targets, factors, found.step, strict=True)
        measured = [factor.weighed(oriented(target, matrix)) for target, factor, matrix in parts]
    progress.end()
    return Step(measured, problem, held_out, found)


def held_out_places(batches: int, share: float) -> list[int]:
    """Return which batches are held out: spread over all of them, none of a single one.

    Args:
        batches: How many there are.
        share: Of them, from 0 to a half.

    Returns:
        Places from 0, ascending; at least one where there are two batches and the share is not 0.
    """
    if batches < 2 or not share:
        return []
    count = max(1, round(share * batches))
    return [(place + 1) * batches // count - 1 for place in range(count)]
