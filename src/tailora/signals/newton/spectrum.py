"""Singular values of each target's part of a Newton step over all targets, and how far held-out examples confirm it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tailora.errors import UserError
from tailora.signals.base import Context, Solved
from tailora.signals.gradient_spectrum import MAX_VALUES, singular_values
from tailora.signals.newton.options import HELD_OUT, held_out_of
from tailora.signals.newton.progress import Progress
from tailora.signals.newton.solvable import refuse, solvable
from tailora.signals.newton.step import Step, held_out_places, step_towards

NAME = "newton_spectrum"
AGREEMENT = "newton_agreement"
_STEP = "newton step"


def newton_spectrum(context: Context, statistics: Any) -> np.ndarray:
    """Return what the Newton step found.

    Args:
        context: With the solution in its cache.
        statistics: Not read.

    Returns:
        float64 ``[n_targets, k]``.
    """
    return context.cache[NAME].values


def newton_agreement(context: Context, statistics: Any) -> np.ndarray:
    """Return how far held-out examples confirm the Newton step.

    Args:
        context: With the solution in its cache.
        statistics: Not read.

    Returns:
        float64 ``[n_targets]``, the same number for all: the step is one.
    """
    return context.cache[AGREEMENT].values


def solve_newton(context: Context, batches: Sequence[Mapping[str, Any]], how: Any) -> Solved:
    """Go towards the minimum of the loss's quadratic model over all targets' weights at once.

    ``min_D <G, D> + 1/2 <D, H D>`` with the gradient G of the mean calibration loss and its Gauss-Newton matrix H,
    cross terms between targets included, by conjugate gradients preconditioned with K-FAC and stopped early (Martens
    2010, Hessian-free optimization; Martens and Grosse 2015, arXiv 1503.05671).  The signal is the singular values of
    ``S^1/2 D_t A^1/2``, descending; their squares are twice what the directions of target t contribute to the model's
    decrease by K-FAC's account, in nats.

    An eighth of the batches (option ``newton_held_out``, a share) is not solved for and says where to stop: at the
    iterate that gains most on them.

    Args:
        context: The model, the targets, the seed, and ``newton_iterations`` and ``newton_held_out`` among the options.
        batches: The calibration batches, gone through once for each iteration and once before.
        how: ``Collecting``: the loss and whom to tell of the progress.

    Returns:
        The spectrum; zero for embeddings and stacked experts, which stay as they are.

    Raises:
        ProfileError: Something is not finite, or cannot be differentiated.
        UserError: No target, loss or batch that this works for.
    """
    found, chosen, left_out = _solution(context, batches, how, NAME)
    width = min(MAX_VALUES, max((target.max_rank for target in context.targets), default=0))
    values = np.zeros((len(context.targets), width), dtype=np.float64)
    for index, matrix in zip(chosen, found.measured, strict=True):
        spectrum = singular_values(matrix[None])[0].cpu().numpy()[:width]
        values[index, : len(spectrum)] = spectrum
    return _solved(values, found, len(batches), left_out)


def solve_agreement(context: Context, batches: Sequence[Mapping[str, Any]], how: Any) -> Solved:
    """Set what the Newton step gains on held-out examples against what it gains on its own.

    ``-<G', D> / sqrt(<D, H' D> <D, H D>)``, the held-out examples' with a prime, between 0 and 1: a correlation in the
    measure of the curvature.  A step that fits the noise of its own labels is near 0.

    Args:
        context: As for ``solve_newton``, whose solution is taken where there is one.
        batches: The calibration batches, at least two.
        how: ``Collecting``.

    Returns:
        The same number for all targets.

    Raises:
        ProfileError: Something is not finite, or cannot be differentiated.
        UserError: No batch could be held out, or no target, loss or batch that this works for.
    """
    if not held_out_places(len(batches), held_out_of(context.options)):
        raise UserError(
            f"signal {AGREEMENT!r} holds some of the calibration batches out and got {len(batches)} and a share of "
            f"{held_out_of(context.options):g}; give smaller batches, or a share such as newton_held_out={HELD_OUT}"
        )
    found, _, left_out = _solution(context, batches, how, AGREEMENT)
    return _solved(np.full(len(context.targets), found.agreement), found, len(batches), left_out)


def _solution(
    context: Context, batches: Sequence[Mapping[str, Any]], how: Any, name: str
) -> tuple[Step, list[int], str]:
    """Solve once for both signals; return the step, the places solved for and a sentence about the others."""
    if _STEP not in context.cache:
        chosen, left_out = solvable(context, name)
        refuse(how, name)
        if not batches:
            raise UserError("there are no calibration batches; give at least one batch with labels")
        step = step_towards(context, chosen, batches, how, Progress.over(context, batches, how))
        context.cache[_STEP] = (step, chosen, left_out)
    return context.cache[_STEP]


def _solved(values: np.ndarray, found: Step, batches: int, left_out: str) -> Solved:
    notes = {"newton": {**found.notes(), "left_as_they_are": left_out}}
    return Solved(values, found.examples, batches, found.problem.loss_name, found.mean_loss, notes)
