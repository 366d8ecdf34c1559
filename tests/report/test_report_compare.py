"""The table and the paired differences against answers computed by hand."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from report_fixtures import write_run, write_study

from tailora.report.compare import compare_runs, paired_differences, seed_interval
from tailora.report.groups import group_runs, short_model
from tailora.report.runs import load_runs
from tailora.report.summary import summarise
from tailora.report.tables import comparison_csv, comparison_markdown, escape_markdown, paired_markdown
from tailora.statistics.paired import paired_means


def test_means_shares_and_ranges(tmp_path):
    # 6 and 8 of 10 correct: mean 0.7, sample standard deviation 0.1414...; the baseline has 5 of 10.
    write_run(tmp_path, "spectral", 0, correct=[True] * 6 + [False] * 4)
    write_run(tmp_path, "spectral", 1, correct=[True] * 8 + [False] * 2)
    write_run(tmp_path, "lora", 0, correct=[True] * 5 + [False] * 5)
    first, second = compare_runs(load_runs(tmp_path))
    assert (first.recipe, first.seeds, first.best, first.baseline) == ("spectral", (0, 1), True, False)
    assert first.score == pytest.approx(0.7)
    assert first.score_std == pytest.approx(0.02**0.5)
    assert (first.score_min, first.score_max) == (0.6, 0.8)
    assert first.train_s == pytest.approx(62.0)
    assert first.peak_memory_mb == 822.5
    assert first.head_params == 7710
    assert (second.recipe, second.score, second.score_std, second.baseline) == ("lora", 0.5, None, True)
    # Uniform rank 2 on 6 layers of 4 square and 2 four-to-one matrices of width 384.
    assert second.adapter_params == 6 * 2 * (4 * 2 * 384 + 2 * 5 * 384)
    assert second.base_share == pytest.approx(100 * second.adapter_params / 22_713_216)


def test_unfinished_runs_are_counted_beside_the_seeds(study):
    rows = {row.recipe: row for row in compare_runs(load_runs(study))}
    assert {name: row.left_out for name, row in rows.items()} == {"lora": 1, "spectral": 1, "fim-lora": 0}


def test_budgets_and_tasks_are_not_mixed_and_sorted_naturally(tmp_path):
    for budget in ("r=16", "r=2", "r=8"):
        write_run(tmp_path, budget=budget)
    write_run(tmp_path, task="another")
    rows = compare_runs(load_runs(tmp_path))
    assert [(row.task, row.budget) for row in rows] == [
        ("another", "r=2"),
        ("stdlib docstrings", "r=2"),
        ("stdlib docstrings", "r=8"),
        ("stdlib docstrings", "r=16"),
    ]


def test_validation_scores_are_another_task(tmp_path):
    write_run(tmp_path)
    folder = write_run(tmp_path, seed=1)
    config = json.loads((folder / "config.json").read_text())
    config["task"]["evaluate_on"] = "validation"
    (folder / "config.json").write_text(json.dumps(config))
    assert {run.task for run in load_runs(tmp_path)} == {"stdlib docstrings", "stdlib docstrings (validation)"}


def _change(folder, **files):
    for name, change in files.items():
        path = folder / f"{name}.json"
        value = json.loads(path.read_text())
        for dotted, new in change.items():
            *parents, last = dotted.split(".")
            inner = value
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = new
        path.write_text(json.dumps(value))


def test_a_learning_rate_search_is_settled_without_the_test_score(tmp_path):
    worse = write_run(tmp_path, learning_rate=0.01, correct=[True] * 10)
    better = write_run(tmp_path, learning_rate=0.001, correct=[False] * 10)
    for folder, loss in ((worse, 2.0), (better, 1.0)):
        (folder / "history.jsonl").write_text(json.dumps({"step": 1, "split": "eval", "loss": loss}))
    (group,) = group_runs(load_runs(tmp_path))
    assert [run.learning_rate for run in group.recipes["lora"]] == [0.001]
    assert "2 settings" in group.notes[0]
    assert "validation loss" in group.notes[0]
    # When the evaluation while training saw the scored examples, it must not choose; the training loss does.
    for folder, loss in ((worse, 0.5), (better, 0.9)):
        rows = [{"step": 1, "split": "train", "loss": loss}, {"step": 1, "split": "eval", "loss": 1 - loss}]
        (folder / "history.jsonl").write_text("\n".join(map(json.dumps, rows)))
        _change(folder, scores={"loss": 1 - loss})
    (group,) = group_runs(load_runs(tmp_path))
    assert [run.learning_rate for run in group.recipes["lora"]] == [0.01]
    assert "training loss" in group.notes[0]


def test_two_placements_of_a_recipe_are_two_entries(tmp_path):
    for seed, placement in enumerate(("all-linear", "query-value")):
        _change(write_run(tmp_path, seed=seed), config={"placement": placement})
    (group,) = group_runs(load_runs(tmp_path))
    assert set(group.recipes) == {"lora (placement all-linear)", "lora (placement query-value)"}
    assert group.baseline == "lora (placement all-linear)"


def test_unequal_settings_and_sizes_are_pointed_out(tmp_path):
    write_run(tmp_path, "lora")
    folder = write_run(tmp_path, "spectral")
    _change(folder, config={"training.steps": 900, "training.learning_rate": 0.5}, counts={"adapter_params": 90_000})
    (group,) = group_runs(load_runs(tmp_path))
    assert len(group.notes) == 2
    assert "training.steps: lora 200, spectral 900" in group.notes[0]
    assert "equally many parameters" in group.notes[1]


def _pair(tmp_path, ours, theirs, **options):
    """Write one baseline and one recipe, a list of correct flags per seed."""
    for seed, flags in enumerate(theirs):
        write_run(tmp_path, "lora", seed, correct=flags, **options)
    for seed, flags in enumerate(ours):
        write_run(tmp_path, "spectral", seed, correct=flags, **options)
    (pair,) = paired_differences(load_runs(tmp_path))
    return pair


def test_a_constructed_difference_is_found(tmp_path):
    # 40 of 200 examples are gained and none lost: +0.2, binomial standard error 0.0283 over examples.
    base = [True] * 100 + [False] * 100
    gain = [True] * 140 + [False] * 60
    pair = _pair(tmp_path, [gain, gain], [base, base])
    assert (pair.quantity, pair.seeds, pair.examples) == ("accuracy", (0, 1), 200)
    assert pair.difference == pytest.approx(0.2)
    assert pair.low == pytest.approx(0.2 - 1.96 * 0.0283, abs=0.006)
    assert pair.high == pytest.approx(0.2 + 1.96 * 0.0283, abs=0.006)
    assert pair.verdict == "better"


def test_a_balanced_difference_is_not_shown(tmp_path):
    base = [True, False] * 100
    swapped = [False, True] * 100
    pair = _pair(tmp_path, [swapped], [base])
    assert pair.difference == 0
    assert pair.low < 0 < pair.high
    # (1.96 + 0.84) / sqrt(200), every example discordant; Student's t with 199 degrees makes it slightly more.
    assert pair.mde == pytest.approx(2.8016 / 200**0.5, rel=0.01)
    assert (
        pair.verdict == f"one seed, and too few examples to tell: only beyond ±{pair.mde:.4f} would a difference show"
    )


def test_identical_predictions_give_zero_and_no_difference(tmp_path):
    flags = [True, False, True] * 20
    pair = _pair(tmp_path, [flags], [flags])
    assert (pair.difference, pair.low, pair.high, pair.p_holm) == (0, 0, 0, 1)
    assert pair.verdict == "no difference at all for this one seed"


def test_one_seed_is_said_to_be_one_seed(tmp_path):
    pair = _pair(tmp_path, [[False] * 60], [[True] * 30 + [False] * 30])
    assert pair.verdict == "worse for this one seed"


def test_seeds_that_disagree_widen_the_interval(tmp_path):
    base, gain = [True] * 100 + [False] * 100, [True] * 140 + [False] * 60
    agree = _pair(tmp_path / "a", [gain, gain], [base, base])
    more, less = [True] * 180 + [False] * 20, [True] * 100 + [False] * 100
    differ = _pair(tmp_path / "b", [more, less], [base, base])
    assert differ.difference == pytest.approx(agree.difference)
    assert differ.high - differ.low > 3 * (agree.high - agree.low)
    assert differ.verdict.startswith("too few seeds and examples to tell: only beyond ±")


@pytest.mark.parametrize(("seeds", "between"), [(1, 0.0), (2, 0.0), (2, 0.05), (3, 0.05), (5, 0.01)])
def test_the_interval_covers_what_it_says(seeds, between):
    """At 95 % nominal, 400 simulated studies: 92 to 99 % must cover; with 400 draws the standard error is 1.1 %.

    Two seeds that do not differ cover more: Student's t with one degree allows for what they might have hidden.
    """
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        data = 0.02 + rng.normal(0, 0.4, 200) + rng.normal(0, between, (seeds, 1)) + rng.normal(0, 0.3, (seeds, 200))
        effect = paired_means(data, rng, resamples=400)
        covered += effect.low <= 0.02 <= effect.high
    assert 0.915 <= covered / 400 <= (0.99 if seeds != 2 else 1)


def test_language_models_are_compared_by_loss(t5_study):
    pairs = {pair.recipe: pair for pair in paired_differences(load_runs(t5_study))}
    assert pairs["spectral"].quantity == "loss"
    assert pairs["spectral"].difference < 0
    assert pairs["spectral"].verdict == "better for this one seed"
    row = compare_runs(load_runs(t5_study))[0]
    assert (row.recipe, row.higher_is_better) == ("spectral", False)
    assert row.perplexity == pytest.approx(np.exp(row.loss))


def test_holm_is_monotone_and_uses_all_comparisons(study):
    pairs = paired_differences(load_runs(study))
    ordered = sorted(pairs, key=lambda pair: pair.p_value)
    assert ordered[0].p_holm == pytest.approx(min(1, 2 * ordered[0].p_value))
    assert ordered[1].p_holm == pytest.approx(max(ordered[0].p_holm, ordered[1].p_value))


@pytest.mark.parametrize("case", ["seed", "predictions", "labels", "twice", "examples"])
def test_what_cannot_be_paired_is_said(tmp_path, case):
    write_run(tmp_path, "lora", 0, examples=20)
    folder = write_run(tmp_path, "spectral", 1 if case == "seed" else 0, examples=20)
    path = folder / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if case == "predictions":
        rows = []
    elif case == "labels":
        rows[3]["label"] = "other"
    elif case == "twice":
        rows.append(rows[0])
    elif case == "examples":
        rows = [{**row, "index": row["index"] + 1000} for row in rows]
    path.write_text("\n".join(map(json.dumps, rows)))
    (pair,) = paired_differences(load_runs(tmp_path))
    assert pair.difference is None
    assert pair.verdict.startswith("not compared: ")
    assert not pair.excludes_zero


def test_the_same_runs_give_the_same_intervals(study):
    assert paired_differences(load_runs(study)) == paired_differences(load_runs(study))
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    paired_differences(load_runs(study))
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_csv_and_markdown_hold_the_rows(study):
    runs = load_runs(study)
    rows, pairs = compare_runs(runs), paired_differences(runs)
    table = list(csv.DictReader(io.StringIO(comparison_csv(rows, pairs))))
    assert [line["recipe"] for line in table] == [row.recipe for row in rows]
    assert [float(line["score"]) for line in table] == [row.score for row in rows]
    assert {line["recipe"]: line["paired_verdict"] for line in table}["lora"] == ""
    text = comparison_markdown(rows)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1
    assert "no difference shown" in paired_markdown(pairs) or "better" in paired_markdown(pairs)


def test_markdown_from_data_is_escaped():
    assert escape_markdown("a|b <script>\n*x*") == r"a\|b \<script\> \*x\*"
    assert escape_markdown("fim_lora") == "fim_lora"


@pytest.mark.parametrize(
    ("model", "short"),
    [("org/name", "name"), ("/data/models/tiny", "tiny"), ("gpt2", "gpt2"), ("/x/pack/model/", "pack/model")],
)
def test_short_model(model, short):
    assert short_model(model) == short


def test_the_summary_says_no_more_than_the_interval(tmp_path, study):
    def words(root):
        runs = load_runs(root)
        return " ".join(summarise(group_runs(runs), paired_differences(runs), runs.problems))

    text = words(study)
    assert "6 finished runs of 3 recipes, 2 seeds each; 2 folders are left out" in text
    assert "spectral has the best mean accuracy" in text
    assert "excludes zero" in text
    assert "only 2 seeds" in text
    flags = [True] * 50 + [False] * 50
    write_run(tmp_path, "lora", correct=flags)
    write_run(tmp_path, "spectral", correct=[*flags[:-1], True])
    assert "holds zero, so no difference is shown" in words(tmp_path)
    only = tmp_path / "only"
    write_run(only, "lora", correct=flags)
    assert "no other recipe to compare with" in words(only)
    many = write_study(tmp_path / "many", seeds=1, budgets=("r=2", "r=4", "r=6", "r=8"), examples=60)
    assert "Of 8 paired comparisons with the baseline" in words(many)


def test_the_interval_over_seeds_by_hand():
    # t with 2 degrees of freedom at 97.5 %: 4.302653 (any table); s = 0.1, n = 3.
    low, high = seed_interval([0.6, 0.7, 0.8])
    assert low == pytest.approx(0.7 - 4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert high == pytest.approx(0.7 + 4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert seed_interval([0.5]) is None
    assert seed_interval([0.5, 0.5]) == (0.5, 0.5)


def test_the_interval_over_seeds_covers_what_it_says():
    rng = np.random.default_rng(5)
    draws = rng.normal(0.7, 0.05, (4000, 3))
    hits = [low <= 0.7 <= high for low, high in map(seed_interval, draws.tolist())]
    # Three standard errors of a share of 95 % over 4000 draws are about one percent.
    assert np.mean(hits) == pytest.approx(0.95, abs=0.0105)


def test_the_table_holds_the_interval(study):
    for row in compare_runs(load_runs(study)):
        assert (row.score_low, row.score_high) == seed_interval(
            [run.score for run in load_runs(study) if run.recipe == row.recipe]
        )
