"""From marginal gains to integer ranks under an exact budget: the only place where ranks are dealt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tailora.adapter_kinds import ADAPTER_KINDS
from tailora.errors import BudgetError, TailoraError
from tailora.targets import Target


def unit_costs(targets: Sequence[Target], r_max: int, *, adapter: str = "lora") -> np.ndarray:
    """Return what each further rank costs.

    Args:
        targets: The candidates.
        r_max: Number of columns.
        adapter: A registered kind of adapter; DoRA's magnitude and a bottleneck's biases come with the first rank.

    Returns:
        int64 ``[n_targets, r_max]``; column k holds ``cost(k + 1) - cost(k)`` in parameters.
    """
    cost = ADAPTER_KINDS[adapter].cost
    first = np.array([cost(target, 1) for target in targets], dtype=np.int64)
    further = np.array([cost(target, 2) for target in targets], dtype=np.int64) - first
    costs = np.repeat(further[:, None], r_max, axis=1)
    if r_max:
        costs[:, 0] = first
    return costs


def rank_limits(
    targets: Sequence[Target], r_max: int | None, multiple: int = 1, *, adapter: str = "lora"
) -> np.ndarray:
    """Return the largest rank each target may get.

    Args:
        targets: The candidates.
        r_max: A common limit, or ``None``.
        multiple: Ranks are multiples of this.
        adapter: A registered kind of adapter.

    Returns:
        int64 ``[n_targets]``: the smaller of ``r_max`` and the largest rank of the kind (of LoRA the matrix's smaller
        side), rounded down to ``multiple``.
    """
    most = ADAPTER_KINDS[adapter].most
    limits = np.array([most(target) for target in targets], dtype=np.int64)
    if r_max is not None:
        limits = np.minimum(limits, r_max)
    return limits // multiple * multiple


def allocate(
    gains: np.ndarray,
    costs: np.ndarray,
    budget: int,
    *,
    limits: np.ndarray | None = None,
    r_min: int = 0,
    multiple: int = 1,
) -> np.ndarray:
    """Turn marginal gains into integer ranks.

    Ranks are taken in blocks of ``multiple``, highest gain per parameter first, ties by rank and then by target order.
    A block that does not fit closes its target, and cheaper blocks of others may still be taken, so what is left over
    is less than the *cheapest* block still wanted (a block of zero gain is not wanted).

    Args:
        gains: Worth of the k-th rank, ``[n_targets, r_max]``, finite, not negative, non-increasing along the ranks.
        costs: Parameters of the k-th rank, int ``[n_targets, r_max]``, non-increasing along the ranks.
        budget: Parameters that may be spent.
        limits: Largest rank of each target, int ``[n_targets]``; ``r_max`` where not given.
        r_min: Rank that every target gets before gains count (rounded up to ``multiple``, down to its limit).
        multiple: Ranks are multiples of this (4 or 8 suit tensor cores).

    Returns:
        int64 ``[n_targets]``.

    Raises:
        BudgetError: ``r_min`` on every target costs more than the budget.
        TailoraError: The gains break the contract.
    """
    gains = np.asarray(gains)
    costs = np.asarray(costs, dtype=np.int64)
    _check(gains, costs)
    n_targets, r_max = gains.shape
    limits = np.full(n_targets, r_max, dtype=np.int64) if limits is None else np.minimum(limits, r_max)
    limits = limits // multiple * multiple
    start = np.minimum(-(-r_min // multiple) * multiple, limits)
    cumulative = np.concatenate([np.zeros((n_targets, 1), dtype=np.int64), np.cumsum(costs, axis=1)], axis=1)
    rows = np.arange(n_targets)
    spent = int(cumulative[rows, start].sum())
    if spent > budget:
        raise BudgetError(
            f"the budget of {budget:,} parameters is below the smallest plan: rank {r_min} on each of the {n_targets} "
            f"targets costs {spent:,}; raise the budget or lower r_min"
        )
    target, first, price, worth = _blocks(gains, cumulative, start, limits, multiple)
    order = np.lexsort((target, first, -worth))
    return _take(target[order], price[order], start, budget - spent, multiple)


def _check(gains: np.ndarray, costs: np.ndarray) -> None:
    """Refuse gains that would make the result meaningless."""
    if gains.ndim != 2 or gains.dtype != np.float64:
        raise TailoraError(f"gains must be float64 [n_targets, r_max], not {gains.dtype} {list(gains.shape)}")
    if gains.shape != costs.shape:
        raise TailoraError(f"gains {list(gains.shape)} and costs {list(costs.shape)} must have one shape")
    if not np.isfinite(gains).all() or (gains < 0).any():
        row = int(np.argmax(~np.isfinite(gains).all(axis=1) | (gains < 0).any(axis=1)))
        raise TailoraError(f"gains must be finite and not negative; target number {row} has {gains[row].min()!r}")
    if gains.shape[1] > 1 and (np.diff(gains, axis=1) > 0).any():
        row = int(np.argmax((np.diff(gains, axis=1) > 0).any(axis=1)))
        raise TailoraError(f"gains must not increase with the rank; those of target number {row} do")


def _blocks(
    gains: np.ndarray, cumulative: np.ndarray, start: np.ndarray, limits: np.ndarray, multiple: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """List every block of ``multiple`` ranks above ``start``: its target, first rank, price and gain per parameter."""
    n_targets, r_max = gains.shape
    total_gain = np.concatenate([np.zeros((n_targets, 1)), np.cumsum(gains, axis=1)], axis=1)
    n_blocks = (limits - start) // multiple
    count = int(n_blocks.max(initial=0))
    lows = start[:, None] + np.arange(count)[None, :] * multiple
    wanted = np.arange(count)[None, :] < n_blocks[:, None]
    lows = np.minimum(lows, r_max - multiple) if count else lows
    rows = np.arange(n_targets)[:, None]
    price = cumulative[rows, lows + multiple] - cumulative[rows, lows]
    if multiple == 1:
        gain = gains[rows, lows]
    else:
        gain = np.maximum(total_gain[rows, lows + multiple] - total_gain[rows, lows], 0.0)
        # A block is as worthless as its last ranks only if its first rank is worthless too.
        gain = np.where(gains[rows, lows] > 0, gain, 0.0)
    density = gain / np.maximum(price, 1)
    # DoRA's first rank carries the magnitude, so its density can be below the second's: a later block is never
    # more urgent than the ones that must come before it.
    density = np.minimum.accumulate(density, axis=1) if count else density
    keep = wanted & (gain > 0)
    # A zero-gain block closes the target even if rounding gave a later one something.
    keep = np.logical_and.accumulate(keep, axis=1) if count else keep
    target = np.broadcast_to(rows, keep.shape)[keep]
    return target, lows[keep], price[keep], density[keep]


def _take(target: np.ndarray, price: np.ndarray, start: np.ndarray, budget: int, multiple: int) -> np.ndarray:
    """Take blocks in order: the whole prefix that fits, then whatever still fits of what follows."""
    ranks = start.astype(np.int64).copy()
    spent = np.cumsum(price)
    fits = int(np.searchsorted(spent, budget, side="right"))
    np.add.at(ranks, target[:fits], multiple)
    left = budget - (int(spent[fits - 1]) if fits else 0)
    closed: set[int] = set()
    rest_target, rest_price = target[fits:], price[fits:]
    cheapest = int(rest_price.min()) if rest_price.size else 0
    for index, cost in zip(rest_target.tolist(), rest_price.tolist(), strict=True):
        if left < cheapest:
            break
        if index in closed:
            continue
        if cost > left:
            closed.add(index)
            continue
        ranks[index] += multiple
        left -= cost
    return ranks
