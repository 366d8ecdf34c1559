"""Integer ranks from gains: the properties that every allocator inherits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.allocate_slow import allocate_slow
from tailora.allocation import allocate, rank_limits, unit_costs
from tailora.errors import BudgetError, TailoraError
from tailora.targets import Target


@st.composite
def problems(draw):
    """Draw gains, costs, limits, r_min, multiple and a budget that r_min fits."""
    n, width = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    multiple = draw(st.sampled_from([1, 1, 1, 2, 3]))
    r_min = draw(st.integers(0, 2))
    # Few distinct values make ties likely.
    values = st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 3.0, 7.5])
    gains = np.array([sorted(draw(st.lists(values, min_size=width, max_size=width)), reverse=True) for _ in range(n)])
    costs = np.empty((n, width), dtype=np.int64)
    for i in range(n):
        per_rank, extra = draw(st.integers(1, 9)), draw(st.integers(0, 4))
        costs[i] = per_rank
        costs[i, 0] += extra
    limits = np.array([draw(st.integers(0, width)) for _ in range(n)])
    start = np.minimum(-(-r_min // multiple) * multiple, limits // multiple * multiple)
    least = sum(int(costs[i, : start[i]].sum()) for i in range(n))
    budget = least + draw(st.integers(0, int(costs.sum()) + 3))
    return gains.astype(np.float64), costs, budget, limits, r_min, multiple


@settings(max_examples=400, deadline=None)
@given(problems())
def test_equals_the_slow_twin(problem):
    gains, costs, budget, limits, r_min, multiple = problem
    fast = allocate(gains, costs, budget, limits=limits, r_min=r_min, multiple=multiple)
    slow = allocate_slow(gains.tolist(), costs.tolist(), budget, limits=limits.tolist(), r_min=r_min, multiple=multiple)
    assert fast.tolist() == slow


@settings(max_examples=300, deadline=None)
@given(problems())
def test_budget_bounds_and_leftover(problem):
    gains, costs, budget, limits, r_min, multiple = problem
    ranks = allocate(gains, costs, budget, limits=limits, r_min=r_min, multiple=multiple)
    spent = sum(int(costs[i, :r].sum()) for i, r in enumerate(ranks))
    assert spent <= budget
    top = limits // multiple * multiple
    assert (ranks <= top).all()
    assert (ranks >= np.minimum(-(-r_min // multiple) * multiple, top)).all()
    assert (ranks % multiple == 0).all()
    # What is left over is less than the cheapest block that anybody still wants.
    wanted = [
        int(costs[i, r : r + multiple].sum()) for i, r in enumerate(ranks) if r + multiple <= top[i] and gains[i, r] > 0
    ]
    assert not wanted or budget - spent < min(wanted)
    again = allocate(gains.copy(), costs.copy(), budget, limits=limits.copy(), r_min=r_min, multiple=multiple)
    assert (again == ranks).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 200), st.randoms(use_true_random=False))
def test_permuting_targets_permutes_ranks(n, width, budget, random):
    # Distinct gains per parameter: ties are broken by target order, which a permutation changes by design.
    values = random.sample(range(1, 1000), n * width)
    gains = -np.sort(-np.array(values, dtype=np.float64).reshape(n, width), axis=1)
    costs = np.repeat(np.array([random.choice([1, 2, 4, 8]) for _ in range(n)])[:, None], width, axis=1)
    densities = (gains / costs).ravel()
    if len(set(densities.tolist())) < densities.size:
        gains = gains + np.arange(n)[:, None] * 1e-7
    order = np.array(random.sample(range(n), n))
    straight = allocate(gains, costs, budget)
    assert (allocate(gains[order], costs[order], budget) == straight[order]).all()


def test_ties_go_by_rank_then_target_order():
    gains = np.ones((3, 2))
    costs = np.ones((3, 2), dtype=np.int64)
    assert allocate(gains, costs, 4).tolist() == [2, 1, 1]
    assert allocate(gains, costs, 2).tolist() == [1, 1, 0]


def test_zero_gain_is_never_taken():
    gains = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert allocate(gains, np.ones((2, 2), dtype=np.int64), 100).tolist() == [1, 0]


def test_cheaper_blocks_use_what_a_dear_one_leaves():
    gains = np.array([[10.0], [1.0]])
    costs = np.array([[8], [3]])
    assert allocate(gains, costs, 7).tolist() == [0, 1]


def test_r_min_above_the_budget_names_the_smallest_plan():
    with pytest.raises(BudgetError, match="rank 2 on each of the 3 targets costs 24; raise the budget or lower r_min"):
        allocate(np.ones((3, 4)), np.full((3, 4), 4), 20, r_min=2)


@pytest.mark.parametrize(
    ("gains", "sentence"),
    [
        (np.ones((2, 2), dtype=np.float32), "must be float64"),
        (np.array([[1.0, 2.0], [1.0, 1.0]]), "those of target number 0 do"),
        (np.array([[1.0, 1.0], [1.0, -1.0]]), "not negative; target number 1"),
        (np.array([[np.nan, 0.0], [1.0, 1.0]]), "finite"),
        (np.ones((2, 3)), "must have one shape"),
    ],
)
def test_gains_that_break_the_contract_are_refused(gains, sentence):
    with pytest.raises(TailoraError, match=sentence):
        allocate(gains, np.ones((2, 2), dtype=np.int64), 10)


def test_unit_costs_add_up_to_what_targets_say():
    targets = [Target("a", "ffn.up", 0, (10, 6)), Target("b", "embedding", None, (50, 4), kind="embedding")]
    for dora in (False, True):
        costs = unit_costs(targets, 4, adapter="dora" if dora else "lora")
        for row, target in zip(costs, targets, strict=True):
            assert [int(row[:k].sum()) for k in range(5)] == [target.cost(k, dora=dora) for k in range(5)]
    assert rank_limits(targets, 5, 2).tolist() == [4, 4]
    assert rank_limits(targets, None).tolist() == [6, 4]
