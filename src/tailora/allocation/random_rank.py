"""Random ranks: the control that every signal has to beat."""

from __future__ import annotations

import hashlib

import numpy as np

from tailora.allocation.problem import Problem
from tailora.allocation.proportional import divisor_gains


def random_scores(names: list[str], seed: int) -> np.ndarray:
    """Return a uniform score in (0, 1] per name.

    Each score depends on the seed and the target's *name* only, so the plan does not change when targets are listed in
    another order or some are left out.

    Args:
        names: Target names.
        seed: The seed.

    Returns:
        float64 ``[n]``.
    """
    digests = [hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in names]
    return (np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.float64) + 1.0) / 2.0**64


def random_rank(problem: Problem) -> np.ndarray:
    """Return gains that deal ranks in proportion to random scores: FIM-LoRA's rule without its signal.

    Args:
        problem: The allocation problem; its ``seed`` counts.

    Returns:
        float64 ``[n_targets, r_max]``.
    """
    return divisor_gains(problem, random_scores([target.name for target in problem.targets], problem.seed))
