"""Newton steps of the two halves of the data, the directions of each measured on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tailora.errors import UserError
from tailora.signals.base import Context, Solved
from tailora.signals.gradient_spectrum import cross_measured
from tailora.signals.newton.spectrum import Progress, refuse, solvable, step_towards, width_of

NAME = "newton_cross_spectrum"


def newton_cross_spectrum(context: Context, statistics: Any) -> np.ndarray:
    """Return what the Newton steps found.

    Args:
        context: With the solution in its cache.
        statistics: Not read.

    Returns:
        float64 ``[n_targets, k]``.
    """
    return context.cache[NAME].values


def solve_newton_cross(context: Context, batches: Sequence[Mapping[str, Any]], how: Any) -> Solved:
    """Take a Newton step on every other batch and one on the rest, and keep what they agree on.

    A Newton step fits the noise of its examples where the curvature is small, the more so where labels are single
    tokens.  With ``M_1, M_2`` a target's part of the two steps in K-FAC's measure (``newton_spectrum``) and ``u_k,
    v_k`` the k-th singular pair of one, ``u_k^T M v_k`` of the other is free of that noise in expectation; both ways
    are averaged.  Values can be negative, and are not sorted.  Unit: root of nats.

    Args:
        context: The model, the targets, the seed, and ``newton_iterations`` among the options.
        batches: At least two calibration batches.
        how: ``Collecting``: the loss and whom to tell of the progress.

    Returns:
        The values, ``[n_targets, k]``; zero for embeddings and stacked experts.

    Raises:
        ProfileError: Something is not finite, or cannot be differentiated.
        UserError: No target, loss or batches that this works for.
    """
    chosen, left_out = solvable(context, NAME)
    refuse(how, NAME)
    if len(batches) < 2:
        raise UserError(
            f"signal {NAME!r} sets two halves of the calibration batches against each other and got {len(batches)} "
            "batch; give smaller batches"
        )
    progress = Progress.over(context, batches, how)
    first, second = (step_towards(context, chosen, batches[half::2], how, progress) for half in (0, 1))
    values = np.zeros((len(context.targets), width_of(context)), dtype=np.float64)
    for index, one, two in zip(chosen, first.measured, second.measured, strict=True):
        crossed = cross_measured(one[None], two[None])[0].cpu().numpy()[: values.shape[1]]
        values[index, : len(crossed)] = crossed
    counts = [half.problem.examples for half in (first, second)]
    mean_loss = sum(n * half.problem.mean_loss for n, half in zip(counts, (first, second), strict=True)) / sum(counts)
    iterations = max(len(first.decreases), len(second.decreases))
    notes = {
        **first.notes(),
        "iterations": iterations,
        "halves": [first.notes(), second.notes()],
        "left_as_they_are": left_out,
    }
    return Solved(values, sum(counts), len(batches), first.problem.loss_name, mean_loss, {"newton": notes})
