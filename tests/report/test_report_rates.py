"""Learning rates: which runs were a search, what it chose, what it cost, and where it hit an edge."""

from __future__ import annotations

import json

import pytest
from report_fixtures import write_run

from tailora.report import compare_runs, load_runs, write_report
from tailora.report.groups import group_runs
from tailora.report.learning_rates import gathered_warnings, rate_families, search_cost
from tailora.report.searches import split_searches

RATES = (3e-4, 1e-3, 3e-3)


def correct(share, examples=20):
    return [number < round(share * examples) for number in range(examples)]


def searched(
    root, recipe="lora", shares=(0.5, 0.8, 0.6), *, final: float | None = 1e-3, seeds=2, rates=RATES, **options
):
    """Write a search with the given accuracies, then the final runs."""
    for rate, share in zip(rates, shares, strict=True):
        write_run(root, recipe, learning_rate=rate, evaluate_on="validation", correct=correct(share), **options)
    if final is not None:
        for seed in range(seeds):
            write_run(root, recipe, seed, learning_rate=final, correct=correct(0.7), **options)


def families(root):
    runs = load_runs(root)
    return rate_families(runs, group_runs(runs))


def test_the_search_leaves_the_tables_and_gives_a_curve(tmp_path):
    searched(tmp_path)
    searched(tmp_path, "spectral", (0.4, 0.5, 0.9), final=3e-3)
    runs = load_runs(tmp_path)
    assert [len(part) for part in split_searches(runs)] == [4, 6]
    assert [(row.task, row.recipe, row.seeds) for row in compare_runs(runs)] == [
        ("stdlib docstrings", "lora", (0, 1)),
        ("stdlib docstrings", "spectral", (0, 1)),
    ]
    (family,) = families(tmp_path)
    assert family.searched
    lora, spectral = family.curves
    assert [(point.rate, point.mean) for point in lora.points] == [(3e-4, 0.5), (1e-3, 0.8), (3e-3, 0.6)]
    assert (lora.chosen, lora.best, lora.score, lora.edge, lora.runs) == (1e-3, 1e-3, 0.8, "", 3)
    assert (spectral.chosen, spectral.best, spectral.edge) == (3e-3, 3e-3, "largest")
    assert family.warnings == [
        "spectral: the chosen rate 0.003 is the largest that was tried; a larger one may be better."
    ]


def test_the_cost_by_hand(tmp_path):
    searched(tmp_path)
    for seed_run in load_runs(tmp_path):
        path = seed_run.path / "timings.json"
        path.write_text(json.dumps({"train_s": 100 if "evaluate_on" in seed_run.config["task"] else 75}))
    cost = search_cost(load_runs(tmp_path))
    assert (cost.runs, cost.train_s, cost.total_s) == (3, 300, 450)
    assert cost.sentence == "The search took 3 runs and 5.0 min of training, 67 % of all training in this report."
    next(tmp_path.iterdir()).joinpath("timings.json").write_text("{}")
    assert search_cost(load_runs(tmp_path)).total_s is None


def test_validation_runs_alone_are_results(tmp_path):
    searched(tmp_path, final=None)
    runs = load_runs(tmp_path)
    assert split_searches(runs)[1] == []
    (group,) = group_runs(runs)
    assert group.task == "stdlib docstrings (validation)"
    (family,) = families(tmp_path)
    assert not family.searched
    assert "on the validation split itself" in write_report(tmp_path).read_text()


def test_one_validation_run_beside_final_runs_is_no_search(tmp_path):
    searched(tmp_path, shares=(0.5,), rates=(1e-3,))
    runs = load_runs(tmp_path)
    assert split_searches(runs)[1] == []
    assert {row.task for row in compare_runs(runs)} == {"stdlib docstrings", "stdlib docstrings (validation)"}


def test_a_recipe_without_final_runs_stays_in_the_search(tmp_path):
    searched(tmp_path)
    searched(tmp_path, "spectral", final=None)
    (family,) = families(tmp_path)
    assert [(curve.recipe, curve.chosen, curve.marked) for curve in family.curves] == [
        ("lora", 1e-3, 1e-3),
        ("spectral", None, 1e-3),
    ]
    assert family.warnings == ["spectral: searched, but no final run has finished."]
    assert [row.recipe for row in compare_runs(load_runs(tmp_path))] == ["lora"]


def test_a_search_of_another_budget_or_label_is_its_own(tmp_path):
    searched(tmp_path)
    searched(tmp_path, budget="r=4", final=None)
    assert {run.budget for run in split_searches(load_runs(tmp_path))[1]} == {"r=2"}
    searched(tmp_path, budget="r=4", label="only here", final=3e-4)
    by_budget = {family.group.budget: [curve.recipe for curve in family.curves] for family in families(tmp_path)}
    assert by_budget == {"r=2": ["lora"], "r=4": ["only here", "lora"]}


def test_a_diverged_rate_is_part_of_the_grid(tmp_path):
    searched(tmp_path, shares=(0.5, 0.8, 0.6))
    lost = next(run.path for run in load_runs(tmp_path) if run.learning_rate == 3e-3)
    (lost / "status.json").write_text(json.dumps({"status": "failed", "error": "the loss is nan"}))
    (family,) = families(tmp_path)
    (curve,) = family.curves
    assert (curve.grid, curve.failed, curve.edge) == (list(RATES), (3e-3,), "")
    assert family.warnings == ["lora: no run finished at 0.003."]


def test_equal_scores_go_to_the_lower_loss_then_to_the_smaller_rate(tmp_path):
    searched(tmp_path, shares=(0.6, 0.6, 0.5))
    for run in load_runs(tmp_path):
        path = run.path / "scores.json"
        loss = 0.5 if run.learning_rate == 1e-3 else 0.9
        path.write_text(json.dumps({**json.loads(path.read_text()), "loss": loss}))
    assert families(tmp_path)[0].curves[0].best == 1e-3
    for run in load_runs(tmp_path):
        path = run.path / "scores.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "loss": 0.5}))
    assert families(tmp_path)[0].curves[0].best == 3e-4


def test_what_the_final_runs_used_is_told_where_the_search_says_otherwise(tmp_path):
    searched(tmp_path, final=3e-4)
    warnings = families(tmp_path)[0].warnings
    assert warnings[0].startswith("lora: the chosen rate 0.0003 is the smallest")
    assert warnings[1] == "lora: the final runs use 0.0003, but 0.001 is the best on the validation split."


def test_unequal_grids_are_pointed_out(tmp_path):
    searched(tmp_path)
    searched(tmp_path, "spectral", (0.5, 0.6, 0.7, 0.4), rates=(1e-4, *RATES), final=3e-3)
    assert "The recipes were not searched on the same grid." in families(tmp_path)[0].warnings


def test_a_warning_that_several_searches_share_is_told_once(tmp_path):
    for budget in ("r=2", "r=4", "r=8"):
        searched(tmp_path, shares=(0.5, 0.6, 0.8), final=3e-3, budget=budget)
    (told,) = gathered_warnings(families(tmp_path))
    assert told.startswith("3 of 3 combinations of task, model and budget: lora: the chosen rate 0.003")


def test_final_runs_at_several_rates_are_called_what_they_are(tmp_path):
    for rate, share in zip(RATES, (0.5, 0.8, 0.6), strict=True):
        for seed in range(2):
            write_run(tmp_path, "lora", seed, learning_rate=rate, correct=correct(share))
    (family,) = families(tmp_path)
    assert not family.searched
    (curve,) = family.curves
    assert [(point.rate, len(point.scores)) for point in curve.points] == [(rate, 2) for rate in RATES]
    (row,) = compare_runs(load_runs(tmp_path))
    assert curve.chosen == row.learning_rate
    assert family.warnings == []
    page = write_report(tmp_path).read_text()
    assert "on the test data itself, not of a search" in page
    assert "The search took" not in page


def test_one_rate_needs_no_section(study, tmp_path):
    assert families(study) == []
    page = write_report(study, tmp_path / "report.html").read_text()
    assert 'id="rates"' not in page


def test_the_page_and_its_markdown_tell_the_search(tmp_path):
    searched(tmp_path)
    searched(tmp_path, "spectral", (0.4, 0.5, 0.9), final=3e-3)
    page = write_report(tmp_path).read_text()
    for words in (
        'id="rates"',
        'href="#rates"',
        "a larger one may be better",
        "0.003 (largest tried)",
        "Validation accuracy against the learning rate, at the chosen rates: lora 0.8000 at 0.001; spectral 0.9000",
        "done, search",
    ):
        assert words in page
    markdown = (tmp_path / "report.md").read_text()
    assert "## Learning rates" in markdown
    assert "| spectral | 0.003 (largest tried) | 0.9000 | 0.0003, 0.001, 0.003 | 3 |" in markdown


@pytest.mark.parametrize("rates", [(1e-3, 1e-3 * (1 + 1e-9)), (1e-8, 1.0)])
def test_odd_grids_still_give_a_figure(tmp_path, rates):
    searched(tmp_path, shares=(0.5, 0.6), rates=rates, final=rates[1])
    assert "against the learning rate" in write_report(tmp_path).read_text()
