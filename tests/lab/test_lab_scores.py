"""Scores, the oracle and the summary of records."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from scipy import stats

from reference.lab import spearman as slow_spearman
from tailora.lab.contestants import contestant_names, decide, read_contestant
from tailora.lab.families import FAMILIES
from tailora.lab.oracle import oracle_gains, oracle_ranks
from tailora.lab.problems import build
from tailora.lab.results import as_json, at_the_edge, left_out, rows_csv, rows_of
from tailora.lab.score import gap_closed, matches, ratio_interval, spearman, student_interval
from tailora.plans import plan


@pytest.fixture(scope="module")
def problem():
    return build(FAMILIES["sparse"](0))


def test_gap_closed():
    assert gap_closed(0.03, 0.02, 0.01) == pytest.approx(0.5)
    assert gap_closed(0.03, 0.04, 0.01) == pytest.approx(-0.5)
    assert math.isnan(gap_closed(0.03, 0.02, 0.0299)), "a gap of 0.3 % says nothing"
    assert math.isnan(gap_closed(0.03, 0.02, 0.04))


def test_intervals_agree_with_scipy():
    values = [0.2, 0.5, 0.4, 0.9, 0.1]
    found = student_interval([*values, math.nan])
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert math.isnan(student_interval([0.3]).low)
    assert math.isnan(student_interval([]).mean)
    gains, gaps = np.array([1.0, 2.0, 0.5, 1.5]), np.array([2.0, 2.5, 2.0, 3.0])
    found = ratio_interval(gains, gaps)
    assert found.mean == pytest.approx(5 / 9.5)
    theirs = stats.bootstrap(
        (gains, gaps), lambda a, b, axis=-1: a.mean(axis) / b.mean(axis), paired=True, method="percentile", rng=1
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_spearman_agrees_with_the_definition_and_scipy():
    draw = np.random.default_rng(0)
    for _ in range(20):
        a, b = draw.integers(0, 4, 9).tolist(), draw.integers(0, 5, 9).tolist()
        assert spearman(a, b) == pytest.approx(slow_spearman(a, b))
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert spearman([1, 1], [1, 2]) == 0


def test_matches():
    planted = {"a": 4, "b": 0, "c": 2, "d": 0}
    assert matches(planted, planted) == {"spearman": pytest.approx(1), "precision": 1, "recall": 1, "covered": 1}
    uniform = matches(planted, dict.fromkeys(planted, 2))
    assert (uniform["spearman"], uniform["precision"], uniform["recall"]) == (0, 0, 0)
    assert uniform["covered"] == pytest.approx(4 / 6)
    wrong = matches(planted, {"b": 5, "c": 3})
    assert (wrong["precision"], wrong["recall"]) == (0.5, 0.5)


def test_the_oracle_covers_what_is_planted_and_keeps_to_the_budget(problem):
    budget = plan(list(problem.targets), "lora", "r=2").budget_params
    ranks = oracle_ranks(problem, budget)
    spent = sum(t.cost(ranks[t.name]) for t in problem.targets)
    assert budget - max(t.cost(1) for t in problem.targets) < spent <= budget
    assert all(ranks[name] >= rank for name, rank in problem.planted.items())
    assert all(rank == 0 for name, rank in ranks.items() if problem.planted[name] == 0)
    gains = oracle_gains(problem, 32)
    name, values = next(iter(problem.spectra.items()))
    row = [t.name for t in problem.targets].index(name)
    norm = float(problem.base.get_submodule(name).weight.double().norm())
    assert gains[row, : len(values)] == pytest.approx(values.numpy() ** 2 / norm**2, rel=1e-6)


def test_the_oracle_of_everything_a_little_is_uniform():
    everything = build(FAMILIES["everything"](1))
    made = plan(list(everything.targets), "lora", "r=2")
    assert oracle_ranks(everything, made.budget_params) == made.ranks


def test_contestants_are_the_recipes_that_only_decide_ranks():
    names = contestant_names()
    assert names[0] == "lora"
    assert {"spectral", "fim-lora", "gelora", "eva-ranks", "random-rank", "attention-only", "ffn-only"} <= set(names)
    assert not {"rslora", "dora", "lora-plus", "fish-lora", "ia3", "gelora-faithful"} & set(names)
    recipe, overrides = read_contestant("spectral:signal=gradient_cross_spectrum,r_max=8")
    assert recipe.name == "spectral"
    assert overrides == {"signal": "gradient_cross_spectrum", "r_max": 8}
    recipe, overrides = read_contestant("pilot:pilot.share=0.25,pilot.rank=4x,gain=worth")
    assert (recipe.pilot.share, recipe.pilot.rank, recipe.pilot.keep) == (0.25, "4x", True)
    assert overrides == {"gain": "worth"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spektral", "did you mean 'spectral'"),
        ("dora", "does more than decide ranks"),
        ("spectral:r_max", "is no 'option=value'"),
    ],
)
def test_wrong_contestants_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        read_contestant(text)


def test_everybody_decides_within_the_budget_and_pays_for_what_is_measured(problem):
    names = [*contestant_names(), "oracle", "spectral:signal=gradient_cross_spectrum"]
    assert {"pilot", "newton"} < set(names)
    assert not {"pilot-dropped", "pilot-uniform"} & set(names), "one recipe for every allocation"
    decisions, failed = decide(problem, names, "r=2")
    assert not failed
    assert [decision.name for decision in decisions] == [name for name in names if not name.startswith("pilot")]
    budget = sum(target.cost(2) for target in problem.targets)
    tokens = problem.spec.calibration * problem.spec.length
    passes = {decision.name: decision.token_passes / tokens for decision in decisions}
    for decision in decisions:
        assert decision.params == sum(t.cost(decision.ranks[t.name]) for t in problem.targets)
        assert 0.9 * budget < decision.params <= budget
    assert passes["lora"] == passes["oracle"] == passes["random-rank"] == 0
    assert passes["spectral"] == passes["fim-lora"] == 1
    assert passes["gelora"] == passes["eva-ranks"] == pytest.approx(1 / 3)
    assert passes["newton"] == pytest.approx(2 + 16 * 4 / 3), "two passes, then a forward and a pass in every iteration"


def test_who_cannot_decide_is_left_out_with_the_reason(problem, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("allocation: {name: spectral, options: {signal: fisher}}\n")
    decisions, failed = decide(problem, ["lora", str(broken)], "r=2")
    assert [decision.name for decision in decisions] == ["lora"]
    assert "one value per target" in failed[str(broken)]


def record(family, seed, **losses):
    entries = {
        name.replace("_", "-"): {"loss": loss, "ranks": {"a": 2, "b": 0}, "params": 10, "extra_compute": 0.05}
        for name, loss in losses.items()
    }
    return {
        "spec": {"family": family, "seed": seed},
        "planted": {"a": 2, "b": 0},
        "contestants": entries,
        "left_out": {"gelora": "no dimension"},
    }


def test_rows():
    records = [
        record("sparse", 0, lora=0.03, oracle=0.01, spectral=0.02),
        record("sparse", 1, lora=0.04, oracle=0.02, spectral=0.05),
        record("everything", 0, lora=0.04, oracle=0.04, spectral=0.05),
    ]
    rows = {(row.family, row.contestant): row for row in rows_of(records)}
    spectral = rows["sparse", "spectral"]
    assert spectral.gaps == pytest.approx((0.5, -0.5))
    assert spectral.gap.mean == pytest.approx(0.0, abs=1e-12)
    assert spectral.lowest == pytest.approx(-0.5)
    assert spectral.ratio.mean == pytest.approx(0.0, abs=1e-12)
    assert rows["sparse", "oracle"].gap.mean == 1
    assert math.isnan(rows["everything", "spectral"].gap.mean)
    assert rows["everything", "spectral"].difference.mean == pytest.approx(0.25)
    assert next(row.contestant for row in rows_of(records) if row.family == "sparse") == "oracle"
    assert as_json(rows["everything", "spectral"])["gap"] == {"mean": None, "low": None, "high": None}
    assert left_out(records) == {"gelora": (3, "no dimension")}
    lines = list(csv.DictReader(io.StringIO(rows_csv(rows_of(records)))))
    assert len(lines) == 6
    assert float(next(x for x in lines if x["contestant"] == "spectral")["loss"]) == pytest.approx(0.035)


def test_a_grid_that_ended_too_soon_is_told():
    def searched(rates, **chosen):
        found = record("labels", 0, **dict.fromkeys(chosen, 0.02))
        for name, rate in chosen.items():
            found["contestants"][name]["rate"] = rate
        return found | {"settings": {"rates": rates}}

    grid = [0.01, 0.02, 0.04]
    records = [searched(grid, lora=0.01, oracle=0.02, pilot=0.04), searched(grid, lora=0.02, oracle=0.02, pilot=0.04)]
    low, high = at_the_edge(records)
    assert low.startswith("labels: the lowest learning rate, 0.01, was the best for lora on half of the problems")
    assert "lower ones may be better" in low
    assert high.startswith("labels: the highest learning rate, 0.04, was the best for pilot on")
    assert at_the_edge([searched(grid, lora=0.02, oracle=0.02)]) == []
    assert at_the_edge([searched([0.02], lora=0.02, oracle=0.02)]) == [], "nobody was asked to search"
