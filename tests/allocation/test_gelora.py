"""GeLoRA's ranks: by hand, fitted, permuted, and what of them is noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tailora
from tailora.allocation import ALLOCATORS, Problem, allocate, unit_costs
from tailora.allocation.gelora import block_ranks, faithful_gelora, gelora, uniform_at_same_cost
from tailora.allocation.gelora_noise import gelora_report, student
from tailora.errors import UserError
from tailora.planning import override_allocation
from tailora.profiles import Profile
from tailora.recipes import load_recipe
from tailora.targets import Target

BOUNDARIES = np.array([3.6, 5.2, 5.4, 9.5, 4.0])
ROLES = {"q": ("attention.query", (16, 16)), "k": ("attention.key", (8, 16)), "up": ("ffn.up", (40, 16))}


def targets_of(blocks=4, stack=""):
    inside = [
        Target(f"{stack}layers.{i}.{name}", role, i, shape, stack=stack)
        for i in range(blocks)
        for name, (role, shape) in ROLES.items()
    ]
    return (Target(f"{stack}head", "head", None, (9, 16)), *inside)


def signal_of(targets, boundaries=BOUNDARIES, replicates=0, spread=0.0, seed=0):
    """The signal of blocks in a chain; every boundary's replicates scatter on their own."""
    generator = np.random.default_rng(seed)
    ends = boundaries[:, None] + spread * generator.normal(size=(len(boundaries), 1 + replicates))
    ends[:, 0] = boundaries
    signal = np.full((len(targets), 2, 1 + replicates), np.nan)
    for index, target in enumerate(targets):
        if target.depth is not None:
            signal[index] = ends[target.depth], ends[target.depth + 1]
    return signal


def problem_of(targets, r_max=16, budget=0, signal=None, **options):
    signals = {"intrinsic_dimension": signal_of(targets) if signal is None else signal}
    return Problem(targets, unit_costs(targets, r_max), signals, budget, 0, options)


@pytest.mark.parametrize(
    ("rounding", "wanted"),
    [
        ("round", [2, 1, 6, 1]),  # 4 5 5 10 4
        ("floor", [3, 1, 5, 1]),  # 3 5 5 9 4
        ("ceil", [3, 1, 5, 1]),  # 4 6 6 10 4
        ("difference", [3, 1, 5, 1]),  # 1.6 0.2 4.1 -5.5
    ],
)
def test_the_rule_by_hand(rounding, wanted):
    targets = targets_of()
    assert list(block_ranks(targets, signal_of(targets), rounding=rounding).values()) == wanted
    ranks = faithful_gelora(problem_of(targets, rounding=rounding, ffn=True))
    assert ranks.tolist() == [0, *np.repeat(wanted, 3)]


def test_attention_only_by_default():
    targets = targets_of()
    ranks = dict(zip([t.name for t in targets], faithful_gelora(problem_of(targets)), strict=True))
    assert [ranks[f"layers.{i}.q"] for i in range(4)] == [2, 1, 6, 1]
    assert [ranks[f"layers.{i}.k"] for i in range(4)] == [2, 1, 6, 1]
    assert [ranks[f"layers.{i}.up"] for i in range(4)] == [0] * 4
    assert ranks["head"] == 0


def test_a_rank_is_at_most_the_smaller_side():
    targets = targets_of()
    high = signal_of(targets, np.array([1.0, 30.0, 30.0, 30.0, 30.0]))
    ranks = faithful_gelora(problem_of(targets, signal=high))
    assert ranks[1:3].tolist() == [16, 8]


def test_fitted_ranks_are_in_the_rule_s_proportion():
    targets = targets_of()
    prescribed = faithful_gelora(problem_of(targets))
    for factor in (1, 2):
        budget = sum(t.cost(factor * int(r)) for t, r in zip(targets, prescribed, strict=True))
        problem = problem_of(targets, budget=budget)
        assert allocate(gelora(problem), problem.unit_costs, budget).tolist() == (factor * prescribed).tolist()


@given(seed=st.integers(0, 1000), order=st.permutations(range(13)))
def test_permuted_ranks_are_the_same_ranks_elsewhere(seed, order):
    targets = targets_of()
    plain = faithful_gelora(problem_of(targets))
    moved = faithful_gelora(problem_of(targets, permute=seed))
    assert sorted(moved[1::3]) == sorted(plain[1::3])
    for i in range(4):
        assert moved[1 + 3 * i] == moved[2 + 3 * i], "all matrices of a block keep one rank"
    cost = [sum(t.cost(int(r)) for t, r in zip(targets, ranks, strict=True)) for ranks in (plain, moved)]
    assert cost[0] == cost[1]
    turned = tuple(targets[i] for i in order)
    assert faithful_gelora(problem_of(turned, permute=seed)).tolist() == moved[list(order)].tolist()


def test_flattened_ranks_are_uniform_on_the_same_matrices_for_the_same_cost():
    targets = targets_of()
    plain, flat = faithful_gelora(problem_of(targets)), faithful_gelora(problem_of(targets, flatten=True))
    assert flat.tolist() == uniform_at_same_cost(targets, plain.tolist()).tolist()
    assert ((flat > 0) == (plain > 0)).all()
    assert flat.tolist() != plain.tolist()
    gains = gelora(problem_of(targets, flatten=True))
    adapted = plain > 0
    per_parameter = gains / problem_of(targets).unit_costs
    assert (per_parameter[adapted] == per_parameter[adapted][0]).all()
    assert not gains[~adapted].any()
    # What is even stays so, whatever block it is dealt to.
    assert faithful_gelora(problem_of(targets, flatten=True, permute=1)).tolist() == flat.tolist()


def test_permuting_changes_something():
    targets = targets_of()
    assert len({tuple(faithful_gelora(problem_of(targets, permute=seed))) for seed in range(20)}) > 5


def test_blocks_of_two_stacks_are_different_blocks():
    targets = targets_of(2, "encoder") + targets_of(2, "decoder")
    signal = signal_of(targets, np.array([1.0, 2.0, 2.0]))
    signal[7:] = signal_of(targets[7:], np.array([1.0, 5.0, 9.0]))
    ranks = block_ranks(targets, signal)
    assert ranks == {("encoder", 0): 2, ("encoder", 1): 1, ("decoder", 0): 5, ("decoder", 1): 5}


@given(seed=st.integers(0, 1000))
def test_uniform_at_the_same_cost(seed):
    targets = targets_of()
    ranks = np.random.default_rng(seed).integers(0, 8, size=len(targets))
    even = uniform_at_same_cost(targets, ranks)
    cost = [sum(t.cost(int(r)) for t, r in zip(targets, dealt, strict=True)) for dealt in (ranks, even)]
    assert ((even > 0) <= (ranks > 0)).all()
    adapted = ranks > 0
    if adapted.any():
        assert 0 <= cost[0] - cost[1] < min(t.cost(1) for t, use in zip(targets, adapted, strict=True) if use)
        assert even[adapted].max() - even[adapted].min() <= 3
    assert uniform_at_same_cost(targets, [3] * len(targets)).tolist() == [3] * len(targets)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rounding": "rnd"}, "unknown rounding 'rnd'; did you mean 'round'"),
        ({"permute": -1}, "permute=-1 .* must be a seed"),
        ({"permute": "x"}, "permute='x' .* must be a seed"),
        ({"flatten": 1}, "flatten=1 .* must be true or false"),
        ({"ffn": "no"}, "ffn='no' .* must be true or false"),
    ],
)
def test_options_that_cannot_be(options, sentence):
    with pytest.raises(UserError, match=sentence):
        gelora(problem_of(targets_of(), **options))


def test_signals_that_cannot_be():
    targets = targets_of()
    flat = problem_of(targets, signal=np.ones(len(targets)))
    with pytest.raises(UserError, match=r"is \[13\] and 'gelora' needs \[n_targets, 2, 1 \+ replicates\]"):
        gelora(flat)
    missing = signal_of(targets)
    missing[1:4, 0] = np.nan
    with pytest.raises(UserError, match="the input of the block of 'layers.0.q' has no intrinsic dimension .*'mean'"):
        gelora(problem_of(targets, signal=missing))
    up = tuple(t for t in targets if t.role == "ffn.up")
    with pytest.raises(UserError, match="none of the 4 candidates is one; .*ffn to true"):
        gelora(problem_of(up))
    assert faithful_gelora(problem_of(up, ffn=True)).tolist() == [2, 1, 6, 1]


@pytest.fixture
def profile():
    targets = targets_of()
    return Profile(
        targets, {"intrinsic_dimension": signal_of(targets, replicates=20, spread=0.1)}, {"model_params": 10}
    )


def test_recipes(profile):
    faithful = tailora.plan(profile, recipe="gelora-faithful", budget="r=4", placement="all-linear")
    assert [faithful.ranks[f"layers.{i}.q"] for i in range(4)] == [2, 1, 6, 1]
    assert {faithful.alphas[name] / rank for name, rank in faithful.ranks.items() if rank} == {32}
    fitted = tailora.plan(profile, recipe="gelora", budget="r=2", placement="all-linear")
    assert fitted.total_params <= fitted.budget_params
    assert fitted.ranks["layers.2.q"] > 2 * fitted.ranks["layers.1.q"] > 0
    assert fitted.ranks["layers.2.up"] == 0
    assert {fitted.alphas[name] / rank for name, rank in fitted.ranks.items() if rank} == {32}
    everywhere = tailora.plan(profile, recipe="gelora", budget="r=2", placement="all-linear", ffn=True)
    assert everywhere.ranks["layers.2.up"] > 0
    assert load_recipe("gelora").signals == ("intrinsic_dimension",)
    control = override_allocation(load_recipe("gelora"), {"permute": 3})
    assert control.allocation.options["permute"] == 3


def test_real_rises_are_told_from_noise():
    targets = targets_of()
    calm = gelora_report(targets, signal_of(targets, replicates=20, spread=0.05))
    assert [block.rank for block in calm.blocks] == [2, 1, 6, 1]
    assert not any(block.within_noise for block in calm.blocks)
    assert calm.warning == calm.scale_warning == ""
    low, high = calm.blocks[0].rise_interval
    assert low < 1.6 < high
    assert high - low == pytest.approx(2 * 2.09 * 0.05 * 2**0.5, rel=0.5)
    wild = gelora_report(targets, signal_of(targets, replicates=20, spread=0.8))
    assert [block.within_noise for block in wild.blocks] == [True, False, False, False]
    assert "1 of the 2 blocks (of 4)" in wild.warning
    assert "(depth 0)" in wild.warning
    assert "\n" not in wild.warning


def test_equal_noise_at_both_ends_cancels():
    targets = targets_of(1)
    shared = 3.0 * np.random.default_rng(0).normal(size=20)
    signal = np.full((len(targets), 2, 21), np.nan)
    signal[1:, 0, 0], signal[1:, 1, 0] = 5.0, 7.0
    signal[1:, 0, 1:], signal[1:, 1, 1:] = 5 + shared, 7 + shared
    (block,) = gelora_report(targets, signal).blocks
    assert block.before_interval[1] > block.after_interval[0]
    assert not block.within_noise


def test_without_replicates_nothing_is_sure():
    targets = targets_of()
    report = gelora_report(targets, signal_of(targets))
    assert [block.within_noise for block in report.blocks] == [True, False, True, False]
    assert report.scale_warning == ""


def test_a_dimension_that_depends_on_the_number_of_rows_is_said():
    targets = targets_of()
    signal = signal_of(targets, replicates=20, spread=0.05)
    signal[:, :, 1:] += 2.0
    assert "at 8 of the 8 block ends is another on half of the examples" in gelora_report(targets, signal).scale_warning


def test_it_is_registered():
    entry = ALLOCATORS.entry("gelora")
    assert entry.value.faithful is faithful_gelora
    assert "2412.09250" in entry.citation


def test_students_quantile_equals_scipys():
    from scipy.stats import t

    for freedom in [*range(1, 60), 99, 1999]:
        assert student(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=1e-4)
