"""The filling rule of the budget, one block at a time, in plain Python."""

from __future__ import annotations


def allocate_slow(gains, costs, budget, *, limits=None, r_min=0, multiple=1):
    """Deal ranks by looking at every target's next block again after each purchase.

    Highest gain per parameter first (a block is never more urgent than the ones before it), ties by rank and then by
    target order; a block that does not fit closes its target; a block without gain is not wanted.
    """
    n, r_max = len(gains), len(gains[0])
    limits = [r_max] * n if limits is None else [min(limit, r_max) for limit in limits]
    limits = [limit // multiple * multiple for limit in limits]
    ranks = [min(-(-r_min // multiple) * multiple, limit) for limit in limits]
    left = budget - sum(sum(costs[i][: ranks[i]]) for i in range(n))
    assert left >= 0
    closed, urgency = set(), [float("inf")] * n
    while True:
        best = None
        for i in range(n):
            if i in closed or ranks[i] + multiple > limits[i] or gains[i][ranks[i]] <= 0:
                continue
            block = range(ranks[i], ranks[i] + multiple)
            price = sum(costs[i][k] for k in block)
            density = min(urgency[i], sum(gains[i][k] for k in block) / price)
            key = (-density, ranks[i], i)
            if best is None or key < best[0]:
                best = (key, i, price, density)
        if best is None:
            return ranks
        _, i, price, density = best
        if price > left:
            closed.add(i)
            continue
        ranks[i] += multiple
        left -= price
        urgency[i] = density
