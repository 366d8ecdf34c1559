"""GeLoRA: rank where a block raises the intrinsic dimension of the hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tailora.adapter_kinds import ADAPTER_KINDS
from tailora.allocation.allocate import allocate, rank_limits, unit_costs
from tailora.allocation.problem import Problem
from tailora.allocation.proportional import divisor_gains
from tailora.errors import UserError, unknown_name
from tailora.targets import Target

ROUNDINGS = ("round", "floor", "ceil", "difference")
"""Each end rounded to the nearest, down or up before the difference is taken; or the difference rounded."""

Block = tuple[str, int]
"""Stack and depth."""


def gelora(problem: Problem) -> np.ndarray:
    """Return gains that deal ranks in proportion to GeLoRA's ranks, fitted to the budget in parameters.

    Args:
        problem: The allocation problem; options as ``faithful_gelora``.

    Returns:
        float64 ``[n_targets, r_max]``.
    """
    ranks = _ranks(problem)
    if _switch(problem, "flatten"):
        # As in ``uniform``: a gain equal to the cost, so that ties are exact and are dealt out rank by rank.
        return np.where(ranks[:, None] > 0, problem.unit_costs, 0).astype(np.float64)
    return divisor_gains(problem, ranks.astype(np.float64))


def faithful_gelora(problem: Problem) -> np.ndarray:
    """Return GeLoRA's ranks, whatever they cost: ``r_i = max(d_(i+1) - d_i, 0) + 1`` (arXiv 2412.09250).

    ``d_i`` is the intrinsic dimension of block i's input and ``d_(i+1)`` that of its output; every adapted matrix of a
    block gets the same rank.  The rounding of the dimensions and whether feed-forward matrices are adapted could not be
    read in the paper: both are options, whose defaults are ours.

    Args:
        problem: The allocation problem; options ``signal`` (default ``intrinsic_dimension``), ``rounding`` (``round``:
            each dimension is rounded to the nearest whole number, then the difference is taken; ``floor``, ``ceil``;
            ``difference``: the difference is rounded), ``ffn`` (default false: attention matrices only, those the paper
            names), and two controls: ``permute`` (a seed: the blocks' ranks are dealt to the wrong blocks at random)
            and ``flatten`` (true: uniform ranks on the same matrices at no more than the rule's own cost).

    Returns:
        int64 ``[n_targets]``; 0 for targets outside of blocks and those that ``ffn`` leaves out; at most the smaller
        side of a matrix.
    """
    limits = np.array([target.max_rank for target in problem.targets], dtype=np.int64)
    ranks = np.minimum(_ranks(problem), limits)
    return uniform_at_same_cost(problem.targets, ranks.tolist()) if _switch(problem, "flatten") else ranks


def block_ranks(
    targets: Sequence[Target], signal: np.ndarray, *, rounding: str = "round", name: str = "intrinsic_dimension"
) -> dict[Block, int]:
    """Return the rank of every block.

    Args:
        targets: The targets.
        signal: float64 ``[n_targets, 2, 1 + B]`` as ``intrinsic_dimension`` is measured.
        rounding: One of ``ROUNDINGS``.
        name: The signal's name, for messages.

    Returns:
        Stack and depth to ``max(d_out - d_in, 0) + 1``, in the order of the targets.

    Raises:
        UserError: The signal has another shape, or a block has no dimension.
    """
    if signal.ndim != 3 or signal.shape[1] != 2 or signal.shape[2] < 1:
        raise UserError(
            f"signal {name!r} is {list(signal.shape)} and 'gelora' needs [n_targets, 2, 1 + replicates]: the dimension "
            "of each block's input and output; profile with signals=('intrinsic_dimension',)"
        )
    found: dict[Block, int] = {}
    for target, values in zip(targets, signal, strict=True):
        if target.depth is None or (target.stack, target.depth) in found:
            continue
        before, after = float(values[0, 0]), float(values[1, 0])
        if not (np.isfinite(before) and np.isfinite(after)):
            end = "output" if np.isfinite(before) else "input"
            raise UserError(
                f"the {end} of the block of {target.name!r} has no intrinsic dimension (are its states all the same, "
                "as the first token's before any attention?); profile again with pooling 'mean' or 'last'"
            )
        found[target.stack, target.depth] = max(_difference(before, after, rounding), 0) + 1
    return found


def uniform_at_same_cost(targets: Sequence[Target], ranks: Sequence[int], *, adapter: str = "lora") -> np.ndarray:
    """Return uniform ranks on the same targets for the same parameters: the control that the paper lacks.

    Args:
        targets: The targets.
        ranks: Ranks of a plan; targets at rank 0 stay at rank 0.
        adapter: A registered kind of adapter.

    Returns:
        int64 ``[n_targets]``, as equal as the budget allows; they never cost more than ``ranks`` do, and less than
        one rank on the cheapest target is left over.
    """
    dealt = np.zeros(len(targets), dtype=np.int64)
    adapted = [index for index, rank in enumerate(ranks) if rank]
    if not adapted:
        return dealt
    chosen = [targets[index] for index in adapted]
    cost = ADAPTER_KINDS[adapter].cost
    budget = sum(cost(targets[index], int(ranks[index])) for index in adapted)
    limits = rank_limits(chosen, None, adapter=adapter)
    costs = unit_costs(chosen, int(limits.max()), adapter=adapter)
    dealt[adapted] = allocate(costs.astype(np.float64), costs, budget, limits=limits)
    return dealt


def _ranks(problem: Problem) -> np.ndarray:
    """Return the rule's ranks before any limit, int64 ``[n_targets]``."""
    name = str(problem.options.get("signal", "intrinsic_dimension"))
    rounding = str(problem.options.get("rounding", "round"))
    by_block = block_ranks(problem.targets, problem.signal(name), rounding=rounding, name=name)
    seed = problem.options.get("permute")
    if seed is not None:
        by_block = _permuted(by_block, seed)
    feed_forward = _switch(problem, "ffn")
    ranks = np.array([_rank_of(target, by_block, feed_forward) for target in problem.targets], dtype=np.int64)
    if not ranks.any():
        raise UserError(
            f"'gelora' adapts the {'matrices' if feed_forward else 'attention matrices'} of blocks and none of the "
            f"{len(ranks)} candidates is one; "
            + ("widen the placement" if feed_forward else "widen the placement or set its option ffn to true")
        )
    return ranks


def _switch(problem: Problem, name: str) -> bool:
    """Return an option that is true or false; false where it is not given."""
    value = problem.options.get(name, False)
    if not isinstance(value, bool):
        raise UserError(f"option {name}={value!r} of allocator 'gelora' must be true or false")
    return value


def _rank_of(target: Target, by_block: dict[Block, int], feed_forward: bool) -> int:
    """Return the rank of one target."""
    if target.depth is None or target.role in {"embedding", "head", "other"}:
        return 0
    if target.role.startswith("ffn") and not feed_forward:
        return 0
    return by_block[target.stack, target.depth]


def _permuted(by_block: dict[Block, int], seed: object) -> dict[Block, int]:
    """Deal the blocks' ranks to blocks at random, whatever order the targets come in."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"option permute={seed!r} of allocator 'gelora' must be a seed, a whole number of at least 0")
    blocks = sorted(by_block)
    order = np.random.default_rng(seed).permutation(len(blocks))
    return {block: by_block[blocks[index]] for block, index in zip(blocks, order, strict=True)}


def _difference(before: float, after: float, rounding: str) -> int:
    """Return a whole number for the rise of a dimension."""
    if rounding == "round":
        return _nearest(after) - _nearest(before)
    if rounding == "floor":
        return int(np.floor(after)) - int(np.floor(before))
    if rounding == "ceil":
        return int(np.ceil(after)) - int(np.ceil(before))
    if rounding == "difference":
        return _nearest(after - before)
    raise unknown_name("rounding", rounding, ROUNDINGS)


def _nearest(value: float) -> int:
    """Round a half up, not to even."""
    return int(np.floor(value + 0.5))
