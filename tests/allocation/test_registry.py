"""The contract of allocators, run over the whole registry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailora.allocation import ALLOCATORS, Problem, allocate, rank_limits, unit_costs
from tailora.allocation.proportional import faithful_proportional
from tailora.errors import UserError
from tailora.targets import Target

NAMES = ALLOCATORS.names()


def make_problem(name, seed=0, n=9, r_max=12, budget_rank=3, dora=False):
    """Return a random problem with every signal an allocator may ask for."""
    rng = np.random.default_rng(seed)
    targets = tuple(
        Target(f"layers.{i}.m", "attention.query", i, (int(rng.integers(12, 40)), int(rng.integers(12, 40))))
        for i in range(n)
    )
    signals = {
        "fisher": rng.lognormal(size=n),
        "gradient_spectrum": -np.sort(-rng.lognormal(sigma=2, size=(n, 10)), axis=1),
        "explained_variance": -np.sort(-rng.dirichlet(np.ones(10), size=n), axis=1),
        "intrinsic_dimension": rng.uniform(1, 20, size=(n, 2, 5)),
        "newton_spectrum": -np.sort(-rng.lognormal(size=(n, 10)), axis=1),
        "newton_agreement": np.full(n, rng.uniform()),
        "pilot_spectrum": -np.sort(-rng.lognormal(size=(n, 10)), axis=1),
        "pilot_worth": rng.normal(0.5, size=(n, 10)),
    }
    options = {"ranks": {t.name: i % 4 for i, t in enumerate(targets)}} if name == "explicit" else {}
    costs = unit_costs(targets, r_max, adapter="dora" if dora else "lora")
    return Problem(targets, costs, signals, sum(t.cost(budget_rank) for t in targets), seed, options)


def permuted(problem, order):
    """Return the same problem with its targets in another order."""
    return Problem(
        tuple(problem.targets[i] for i in order),
        problem.unit_costs[order],
        {name: values[order] for name, values in problem.signals.items()},
        problem.budget_params,
        problem.seed,
        problem.options,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dora", [False, True])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), budget_rank=st.integers(1, 14))
def test_gains_keep_the_contract(name, dora, seed, budget_rank):
    problem = make_problem(name, seed, budget_rank=budget_rank, dora=dora)
    gains = ALLOCATORS[name].gains(problem)
    assert gains.shape == problem.unit_costs.shape
    assert gains.dtype == np.float64
    assert np.isfinite(gains).all()
    assert (gains >= 0).all()
    assert (np.diff(gains, axis=1) <= 0).all()
    assert (ALLOCATORS[name].gains(problem) == gains).all(), "an allocator must be a pure function"
    limits = rank_limits(problem.targets, problem.r_max)
    ranks = allocate(gains, problem.unit_costs, problem.budget_params, limits=limits)
    spent = sum(t.cost(int(r), dora=dora) for t, r in zip(problem.targets, ranks, strict=True))
    assert spent <= problem.budget_params


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_gains_follow_their_target(name, seed, data):
    problem = make_problem(name, seed)
    order = np.array(data.draw(st.permutations(range(len(problem.targets)))))
    straight = ALLOCATORS[name].gains(problem)
    np.testing.assert_array_equal(ALLOCATORS[name].gains(permuted(problem, order)), straight[order])


@pytest.mark.parametrize("name", NAMES)
def test_entries_say_what_they_are(name):
    entry = ALLOCATORS.entry(name)
    assert entry.summary
    assert name in {"random", "explicit"} or entry.citation
    for signal in entry.value.needs:
        problem = make_problem(name)
        held = {key: values for key, values in problem.signals.items() if key != signal}
        bare = Problem(problem.targets, problem.unit_costs, held, 100)
        with pytest.raises(UserError, match=f"signal '{signal}' is needed to allocate"):
            entry.value.gains(bare)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_uniform_is_uniform(rank, dora):
    problem = make_problem("uniform", r_max=12, dora=dora)
    budget = sum(t.cost(rank, dora=dora) for t in problem.targets)
    ranks = allocate(ALLOCATORS["uniform"].gains(problem), problem.unit_costs, budget)
    assert ranks.tolist() == [rank] * len(problem.targets)


def test_proportional_ranks_follow_the_score():
    targets = tuple(Target(f"t{i}", "ffn.up", i, (20, 20)) for i in range(3))
    costs = unit_costs(targets, 64)
    problem = Problem(targets, costs, {"fisher": np.array([1.0, 2.0, 5.0]) * 400}, 8 * 4 * 40, 0, {})
    ranks = allocate(ALLOCATORS["proportional"].gains(problem), costs, 8 * 4 * 40)
    assert ranks.tolist() == [4, 8, 20]


def test_proportional_splits_ranks_not_parameters():
    # Equal score per element: a matrix twice as large gets the same rank, and so costs more.
    targets = (Target("small", "ffn.up", 0, (10, 10)), Target("large", "ffn.up", 1, (40, 40)))
    costs = unit_costs(targets, 10)
    problem = Problem(targets, costs, {"fisher": np.array([100.0, 1600.0])}, 500, 0, {})
    assert allocate(ALLOCATORS["proportional"].gains(problem), costs, 500).tolist() == [5, 5]


def test_spectral_gain_is_the_squared_singular_value():
    targets = (Target("a", "ffn.up", 0, (8, 8)), Target("b", "ffn.up", 1, (24, 24)))
    costs = unit_costs(targets, 3)
    spectrum = np.array([[3.0, 1.0, 0.0], [4.0, 3.9, 3.8]])
    problem = Problem(targets, costs, {"gradient_spectrum": spectrum}, 0, 0, {})
    gains = ALLOCATORS["spectral"].gains(problem)
    np.testing.assert_allclose(gains, spectrum**2)
    # Per parameter: a 9/16, 1/16; b 16/48, 15.21/48, 14.44/48.
    assert allocate(gains, costs, 16 + 48).tolist() == [1, 1]
    assert allocate(gains, costs, 16 + 48 + 47).tolist() == [2, 1]
    assert allocate(gains, costs, 10_000).tolist() == [2, 3]


def test_spectral_refuses_a_signal_without_spectrum():
    problem = make_problem("spectral")
    flat = Problem(problem.targets, problem.unit_costs, problem.signals, 0, 0, {"signal": "fisher"})
    with pytest.raises(UserError, match="has one value per target; 'spectral' needs a spectrum"):
        ALLOCATORS["spectral"].gains(flat)


def test_random_ranks_depend_on_seed_and_name_only():
    one, two = make_problem("random", 0), make_problem("random", 0)
    fewer = permuted(two, np.array([4, 1]))
    gains = ALLOCATORS["random"].gains(one)
    np.testing.assert_array_equal(ALLOCATORS["random"].gains(fewer), gains[[4, 1]])
    other = Problem(one.targets, one.unit_costs, {}, one.budget_params, 1, {})
    assert (ALLOCATORS["random"].gains(other) != gains).any()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_the_published_rule_keeps_the_sum_of_ranks(seed, base):
    problem = make_problem("proportional", seed, budget_rank=base)
    ranks = faithful_proportional(problem)
    assert ranks.sum() == base * len(problem.targets)
    assert ranks.min() >= 1
    assert ranks.max() <= 2 * base


def test_the_published_rule_by_hand():
    # r = 4, four targets of one shape: sum 16, each within [1, 8].  Scores 100:4:2:2 saturate the first at 8 and leave
    # 8 for 4:2:2.
    targets = tuple(Target(f"t{i}", "ffn.up", i, (20, 20)) for i in range(4))
    problem = Problem(targets, unit_costs(targets, 20), {"fisher": np.array([100.0, 4.0, 2.0, 2.0])}, 4 * 40 * 4, 0, {})
    assert faithful_proportional(problem).tolist() == [8, 4, 2, 2]


def test_the_published_rule_with_no_signal_at_all_is_uniform():
    problem = make_problem("proportional", budget_rank=3)
    zero = Problem(problem.targets, problem.unit_costs, {"fisher": np.zeros(9)}, problem.budget_params)
    assert faithful_proportional(zero).tolist() == [3] * 9


@pytest.mark.parametrize(
    ("ranks", "sentence"),
    [
        ({"layers.0.n": 3}, "'layers.0.n', which is no candidate target; did you mean 'layers.0.m'"),
        ({"layers.0.m": 99}, "above .* smaller side of its matrix"),
        ({"layers.0.m": 0}, "all zero"),
        ({"layers.0.m": -1}, "whole number of at least 0"),
        ({"layers.0.m": 1.5}, "whole number of at least 0"),
        ({}, "must map target names to ranks"),
    ],
)
def test_explicit_ranks_that_cannot_be(ranks, sentence):
    problem = make_problem("explicit")
    wrong = Problem(problem.targets, problem.unit_costs, {}, 0, 0, {"ranks": ranks})
    with pytest.raises(UserError, match=sentence):
        ALLOCATORS["explicit"].gains(wrong)


def test_explicit_ranks_from_a_file_with_patterns(tmp_path):
    file = tmp_path / "ranks.yaml"
    file.write_text("'layers.*.m': 2\nlayers.3.m: 5\n")
    problem = make_problem("explicit")
    given_file = Problem(problem.targets, problem.unit_costs, {}, 0, 0, {"ranks": str(file)})
    gains = ALLOCATORS["explicit"].gains(given_file)
    assert allocate(gains, problem.unit_costs, 10**9).tolist() == [2, 2, 2, 5, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("name", NAMES)
def test_gains_of_a_rank_do_not_depend_on_how_many_follow(name):
    wide = make_problem(name, r_max=12)
    narrow = Problem(wide.targets, wide.unit_costs[:, :5], wide.signals, wide.budget_params, wide.seed, wide.options)
    np.testing.assert_array_equal(ALLOCATORS[name].gains(narrow), ALLOCATORS[name].gains(wide)[:, :5])


def test_a_pilots_gain_is_the_geometric_mean_of_size_and_worth():
    targets = (Target("a", "ffn.up", 0, (8, 8)), Target("b", "ffn.up", 1, (8, 8)))
    # The second direction of a is large and does harm; b's are small and good.
    signals = {"pilot_spectrum": np.array([[4.0, 3.0], [2.0, 1.0]]), "pilot_worth": np.array([[1.0, -2.0], [4.0, 9.0]])}
    expected = {"both": [[4.0, 0.0], [6.0, 2.0]], "spectrum": [[16.0, 9.0], [4.0, 1.0]], "worth": [[1.0, 0], [9.0, 4]]}
    for gain, gains in expected.items():
        problem = Problem(targets, unit_costs(targets, 3), signals, 100, 0, {"gain": gain})
        found = ALLOCATORS["pilot"].gains(problem)
        np.testing.assert_allclose(found, np.pad(np.array(gains, dtype=float), ((0, 0), (0, 1))))
    with pytest.raises(UserError, match="option gain='size' of the allocator 'pilot' is not known"):
        ALLOCATORS["pilot"].gains(Problem(targets, unit_costs(targets, 3), signals, 100, 0, {"gain": "size"}))
    harm = {**signals, "pilot_worth": -np.abs(signals["pilot_worth"])}
    with pytest.raises(UserError, match="took nothing off the loss of any candidate"):
        ALLOCATORS["pilot"].gains(Problem(targets, unit_costs(targets, 3), harm, 100))
