"""The oracle: what an allocator that knew the planted updates would do with the same budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tailora.allocation import allocate, unit_costs
from tailora.lab.problems import PlantedProblem
from tailora.targets import Target

# A power of two: gain per parameter is then the same for all planted targets to the last bit, and ties go in turn.
_LEFT_OVER = 2.0**-60


def oracle_gains(problem: PlantedProblem, r_max: int) -> np.ndarray:
    """Return what the k-th rank of every target is worth to somebody who knows the teacher.

    By Eckart and Young the k-th rank on a target recovers the k-th squared singular value of its update; it is divided
    by the squared norm of the weight, since a change matters in proportion to what the matrix does already.  What is
    left of the budget goes to the planted targets in turn: ranks beyond the planted ones add nothing that the teacher
    has, but room in which training gets there sooner, and no other use of them was found to be better.

    Args:
        problem: The problem.
        r_max: Number of columns.

    Returns:
        float64 ``[n_targets, r_max]``, falling along the ranks.
    """
    costs = unit_costs(problem.targets, r_max)
    gains = np.zeros(costs.shape)
    for row, target in enumerate(problem.targets):
        if target.name in problem.spectra:
            module: Any = problem.base.get_submodule(target.name)
            values = problem.spectra[target.name].numpy()[:r_max] / float(module.weight.double().norm())
            gains[row] = _LEFT_OVER * costs[row]
            # Of 24 bits, so that equal worth per parameter stays equal when it is divided by the cost again.
            worth = np.float64(np.float32(values**2 / costs[row, : len(values)]))
            gains[row, : len(values)] = worth * costs[row, : len(values)]
    return np.minimum.accumulate(gains, axis=1)


def oracle_ranks(problem: PlantedProblem, budget: int) -> dict[str, int]:
    """Return the oracle's plan.

    Args:
        problem: The problem.
        budget: Parameters that may be spent.

    Returns:
        Name of every candidate to its rank.
    """
    limits = np.array([target.max_rank for target in problem.targets])
    r_max = int(limits.max())
    ranks = allocate(oracle_gains(problem, r_max), unit_costs(problem.targets, r_max), budget, limits=limits)
    return {target.name: int(rank) for target, rank in zip(problem.targets, ranks, strict=True)}


def cost(targets: Sequence[Target], ranks: dict[str, int]) -> int:
    """Return the parameters that ranks cost."""
    return sum(target.cost(ranks.get(target.name, 0)) for target in targets)
