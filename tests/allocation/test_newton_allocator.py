"""The newton allocator: its own gains where the step is confirmed, uniform ones where it is not."""

from __future__ import annotations

import numpy as np
import pytest

from tailora.allocation import ALLOCATORS, allocate, unit_costs
from tailora.allocation.problem import Problem
from tailora.errors import UserError
from tailora.targets import Target


def problem(agreement, options=None, scale=1.0, small=False):
    shapes = [(32, 32), (80, 32), (32, 80), (6 if small else 32, 32)]
    targets = tuple(
        Target(name=f"layers.{i}.weight", kind="linear", shape=shape, role="attention.query", depth=i)
        for i, shape in enumerate(shapes)
    )
    spectrum = scale * np.random.default_rng(0).random((4, 32)) * np.array([[8.0], [1.0], [2.0], [0.1]])
    signals = {"newton_spectrum": -np.sort(-spectrum, axis=1), "newton_agreement": np.full(4, agreement)}
    return Problem(targets, unit_costs(targets, 16), signals, 2 * sum(t.cost(1) for t in targets), 0, options or {})


def ranks(given):
    gains = ALLOCATORS["newton"].gains(given)
    return allocate(gains, given.unit_costs, given.budget_params).tolist()


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_nothing_confirmed_is_uniform_and_three_quarters_confirmed_is_the_step(scale):
    assert ranks(problem(0.0, scale=scale)) == [2, 2, 2, 2]
    own = problem(0.75, scale=scale)
    squares = own.signals["newton_spectrum"][:, :16] ** 2
    np.testing.assert_allclose(ALLOCATORS["newton"].gains(own), squares)
    assert (
        ranks(own) == ranks(problem(0.9, scale=scale)) == allocate(squares, own.unit_costs, own.budget_params).tolist()
    )


def test_between_them_ranks_move_from_one_to_the_other():
    first = [ranks(problem(0.0, {"confidence": share}))[0] for share in (0, 0.1, 0.3, 1)]
    assert first == sorted(first)
    assert first[0] == 2 < first[-1]


def test_agreement_becomes_confidence_in_proportion():
    gains = ALLOCATORS["newton"].gains
    np.testing.assert_array_equal(gains(problem(0.3)), gains(problem(0.0, {"confidence": 0.3 / 0.75})))


def test_gain_per_parameter_is_shared_where_a_target_is_too_small_for_a_rank():
    given = problem(0.0, small=True)
    gains = ALLOCATORS["newton"].gains(given) / given.unit_costs
    assert (np.ptp(gains, axis=0) < 1e-12 * gains[0]).all()
    assert (np.diff(gains, axis=1) <= 0).all()
    worth = given.signals["newton_spectrum"][:, :16] ** 2 / given.unit_costs
    wanted = [worth[: 4 if k < 6 else 3, k].mean() for k in range(16)]
    np.testing.assert_allclose(gains[0], np.minimum.accumulate(wanted), rtol=1e-6)


@pytest.mark.parametrize("confidence", [-0.1, 1.5, True, "much"])
def test_a_confidence_beyond_its_range_is_refused(confidence):
    with pytest.raises(UserError, match="must be a number from 0 to 1"):
        ranks(problem(0.0, {"confidence": confidence}))


def test_no_step_is_refused():
    with pytest.raises(UserError, match="there is no step to follow"):
        ranks(problem(1.0, scale=0.0))
