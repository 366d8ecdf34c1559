"""What paired differences are of, what their verdicts say, and how recipes stand over several places."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from report_fixtures import write_run, write_study
from rich.console import Console

from tailora.evaluation import metrics
from tailora.report import load_runs, paired_differences, paired_table, write_report
from tailora.report.compare import PairedDifference, Pairs, compare_runs
from tailora.report.groups import group_runs
from tailora.report.latex import comparison_latex
from tailora.report.summary import summarise
from tailora.report.tables import comparison_csv, paired_markdown
from tailora.statistics.intervals import seed_test
from tailora.statistics.tables import Ranks

PAIR = PairedDifference("t", "m", "r=2", "spectral", "lora", "accuracy", (0, 1, 2), 500, 0.002, -0.004, 0.008, 0.5, 0.5)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"mde": 0.009}, "no difference: beyond ±0.0090 it would have shown"),
        ({"mde": 0.009, "seeds": (0,)}, "no difference for this one seed: beyond ±0.0090 it would have shown"),
        (
            {"mde": 0.05, "short_of": "seeds"},
            "too few seeds to tell: only beyond ±0.0500 would a difference show",
        ),
        ({"low": 0.001, "p_holm": 0.01}, "better"),
        ({"low": 0.001, "p_holm": 0.01, "higher_is_better": False}, "worse"),
        ({"low": 0.001, "p_holm": 0.2}, "better, but not after correcting for the number of comparisons"),
        ({"difference": 0.0, "mde": 0.0}, "no difference at all"),
    ],
)
def test_verdicts(changes, verdict):
    assert replace(PAIR, **changes).verdict == verdict


def _rescore(folder, primary, labels, guesses, value, up=True):
    rows = [
        {"index": index, "label": label, "prediction": guess, "correct": label == guess, "loss": 1.0 + (label != guess)}
        for index, (label, guess) in enumerate(zip(labels, guesses, strict=True))
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = {"primary": primary, "higher_is_better": up, primary: value, "loss": 1.0}
    (folder / "scores.json").write_text(json.dumps(scores))


def _confusion(labels, guesses):
    return metrics.confusion([(int(a == "yes"), int(b == "yes")) for a, b in zip(labels, guesses, strict=True)], 2)


@pytest.mark.parametrize("primary", ["matthews", "f1", "spearman", "pearson"])
def test_metrics_that_are_no_means_are_resampled_themselves(tmp_path, primary):
    rng = np.random.default_rng(8)
    true = rng.uniform(size=120)
    found = {}
    for recipe, noise in (("lora", 0.5), ("spectral", 0.1)):
        for seed in (0, 1, 2):
            seen = true + rng.normal(0, noise, 120)
            if primary in ("matthews", "f1"):
                labels, guesses = (np.where(x > 0.7, "yes", "no").tolist() for x in (true, seen))
                value = getattr(metrics, primary)(_confusion(labels, guesses))
            else:
                labels, guesses = true.tolist(), seen.tolist()
                value = getattr(metrics, primary)(labels, guesses)
            _rescore(write_run(tmp_path, recipe, seed, examples=120), primary, labels, guesses, value)
            found.setdefault(recipe, []).append(value)
    (pair,) = paired_differences(load_runs(tmp_path))
    assert (pair.quantity, pair.examples, pair.higher_is_better) == (primary, 120, True)
    assert pair.difference == pytest.approx(np.mean(found["spectral"]) - np.mean(found["lora"]))
    assert pair.seed_p == pytest.approx(seed_test(found["spectral"], found["lora"]))
    assert pair.verdict == "better"
    assert (len(pair.mcnemar_by_seed) == 3) == (pair.mcnemar_p is not None)


def test_a_score_that_predictions_do_not_give_falls_back_to_accuracy(tmp_path):
    for recipe in ("lora", "spectral"):
        folder = write_run(tmp_path, recipe, examples=30)
        _rescore(folder, "bleu", ["a"] * 30, ["a"] * 20 + ["b"] * 10, 31.5)
    (pair,) = paired_differences(load_runs(tmp_path))
    assert pair.quantity == "accuracy"


def test_the_loss_of_a_language_model_is_that_per_token(tmp_path):
    for recipe, shift in (("lora", 0.0), ("spectral", 0.1)):
        folder = write_run(tmp_path, recipe, kind="causal-lm", examples=40)
        rows = [{"index": n, "tokens": 1 + n % 7, "loss": 1 + n / 40 + shift} for n in range(40)]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        total = sum(row["tokens"] for row in rows)
        loss = math.fsum(row["loss"] * row["tokens"] for row in rows) / total
        (folder / "scores.json").write_text(json.dumps({"primary": "loss", "higher_is_better": False, "loss": loss}))
    (pair,) = paired_differences(load_runs(tmp_path))
    assert (pair.quantity, pair.higher_is_better) == ("loss", False)
    assert pair.difference == pytest.approx(0.1)
    assert pair.verdict == "worse for this one seed"


def test_equal_recipes_in_run_folders(tmp_path):
    """One plan under two names, as folders on disk; seeds make the models differ, the name does not."""
    for study in range(4):
        for recipe in ("lora", "twin"):
            for seed in range(3):
                folder = tmp_path / str(study)
                write_run(folder, recipe, seed, examples=150, quality=0.7 + 0.01 * study, ranks_of="lora")
        (pair,) = paired_differences(load_runs(tmp_path / str(study)))
        assert pair.low < 0 < pair.high
        assert pair.p_value >= 0.05
        assert pair.verdict.startswith(("too few", "no difference"))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("several"), seeds=1, budgets=tuple(f"r={n}" for n in range(2, 8)))


def test_standings_over_several_places(several):
    runs = load_runs(several)
    pairs = paired_differences(runs)
    assert isinstance(pairs, Pairs)
    standings = {entry.recipe: entry for entry in pairs.standings}
    assert set(standings) == {"lora", "spectral", "fim-lora"}
    # The fixture makes spectral better everywhere, by far more than chance.
    assert (standings["spectral"].rank, standings["spectral"].losses) == (1.0, 0)
    assert standings["spectral"].wins >= 5
    own = [pair for pair in pairs if pair.recipe == "fim-lora"]
    entry = standings["fim-lora"]
    assert entry.wins == sum(pair.clear and pair.better for pair in own)
    assert entry.wins + entry.ties + entry.losses == 6
    assert pairs.ranks is not None
    assert sum(pairs.ranks.average.values()) == pytest.approx(6)
    assert "Friedman's test" in pairs.friedman
    assert Pairs(pairs, Ranks({}, 3)).friedman == "Average ranks over 3 places, too few for a test."


def test_the_tables_hold_what_the_verdicts_rest_on(several):
    runs = load_runs(several)
    pairs = paired_differences(runs)
    text = paired_markdown(pairs)
    first, second, third = (block for block in text.split("\n\n") if block.startswith("|"))
    assert "detectable" not in first
    assert "| McNemar |" in second
    assert second.count("\n") == 1 + len(pairs)
    assert "| average rank | wins |" in third
    lines = list(csv.DictReader(io.StringIO(comparison_csv(compare_runs(runs), pairs))))
    shown = {(line["budget"], line["recipe"]): line for line in lines}
    for pair in pairs:
        line = shown[pair.budget, pair.recipe]
        assert float(line["paired_mde"]) == pair.mde
        assert float(line["paired_mcnemar_p"]) == pair.mcnemar_p
    assert {line["overall_rank"] for line in lines if line["recipe"] == "spectral"} == {"1.0"}
    latex = comparison_latex(compare_runs(runs), pairs)
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 6 + 6 + 1
    stream = io.StringIO()
    Console(file=stream, width=80, color_system=None).print(paired_table(runs))
    assert "average rank" in stream.getvalue()
    assert max(map(len, stream.getvalue().splitlines())) <= 80
    assert "…" not in stream.getvalue()
    assert pairs.friedman in summarise(group_runs(runs), pairs, [])


def test_the_page_holds_them_too(several, tmp_path):
    page = write_report(several, tmp_path / "report.html").read_text()
    section = page.partition('id="paired"')[2].partition("</section>")[0]
    assert "What the verdicts rest on" in section
    assert "Over all combinations" in section
    assert section.count("±") >= 12
