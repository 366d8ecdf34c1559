"""Score and plan against the size of the calibration, against numbers worked out by hand."""

from __future__ import annotations

import json

import pytest
from report_fixtures import write_run

from tailora.report import load_runs, write_report
from tailora.report.calibration_sizes import moved_share, rank_correlation, size_curves
from tailora.report.groups import group_runs


def plan(**costs):
    return {"targets": [{"name": name, "rank": cost // 10, "cost": cost} for name, cost in costs.items()]}


def test_moved_parameters_by_hand():
    full = plan(a=40, b=30, c=20, d=10)
    assert moved_share(full, full) == 0
    # b lends 10 and c lends 20 to d.
    assert moved_share(full, plan(a=40, b=20, c=0, d=40)) == pytest.approx(0.3)
    assert moved_share(full, plan(e=100)) == 1
    assert moved_share(plan(a=0), full) is None


def test_rank_correlation_by_hand():
    full = plan(a=40, b=30, c=20, d=10)
    assert rank_correlation(full, plan(a=80, b=70, c=60, d=10)) == pytest.approx(1)
    assert rank_correlation(full, plan(a=10, b=20, c=30, d=40)) == pytest.approx(-1)
    # Ranks 1 2 3 4 against 2 1 3 4: 1 - 6 (1 + 1) / (4 (16 - 1)).
    assert rank_correlation(full, plan(a=30, b=40, c=20, d=10)) == pytest.approx(0.8)
    assert rank_correlation(full, plan(a=20, b=20, c=20, d=20)) is None
    assert rank_correlation(full, plan(a=20, b=10)) is None


def flags(share):
    return [number < share for number in range(10)]


def curves(root):
    runs = load_runs(root)
    return {group.budget: size_curves(runs, group) for group in group_runs(runs)}


def write_sizes(root, labelled=True, **options):
    for size, share in ((8, 5), (32, 6), (128, 7)):
        for seed in range(3):
            label = f"fim-lora, {size} examples" if labelled else ""
            write_run(
                root, "fim-lora", seed, calibration=size, correct=flags(share + (seed == 2)), label=label, **options
            )


def test_labels_of_one_recipe_make_one_curve(tmp_path):
    write_run(tmp_path, "lora", correct=flags(5))
    write_sizes(tmp_path)
    (curve,) = curves(tmp_path)["r=2"]
    assert curve.recipe == "fim-lora"
    assert [(point.size, sorted(point.scores)) for point in curve.points] == [
        (8, [0.5, 0.5, 0.6]),
        (32, [0.6, 0.6, 0.7]),
        (128, [0.7, 0.7, 0.8]),
    ]
    # mean ± 4.303 s / sqrt(3), with s = 0.0577.
    assert curve.points[0].low == pytest.approx(0.5333 - 0.1434, abs=1e-4)
    assert curve.points[0].high == pytest.approx(0.5333 + 0.1434, abs=1e-4)
    assert curve.points[-1].moved is None
    assert curve.points[-1].correlation is None
    by_size = {
        (run.config["calibration"]["examples"], run.seed): run.plan
        for run in load_runs(tmp_path)
        if run.recipe != "lora"
    }
    for point in curve.points[:2]:
        moved = [moved_share(by_size[128, seed], by_size[point.size, seed]) or 0.0 for seed in range(3)]
        assert point.moved == pytest.approx(sum(moved) / 3)
        assert 0 < (point.moved or 0) < 1


def test_sizes_without_labels_and_with_rates_of_their_own(tmp_path):
    write_sizes(tmp_path, labelled=False)
    for run in load_runs(tmp_path):
        path = run.path / "config.json"
        config = json.loads(path.read_text())
        config["training"]["learning_rate"] = config["calibration"]["examples"] * 1e-4
        path.write_text(json.dumps(config))
    (curve,) = curves(tmp_path)["r=2"]
    assert [point.size for point in curve.points] == [8, 32, 128]


def test_what_differs_in_more_than_the_size_is_another_curve(tmp_path):
    write_run(tmp_path, "lora", calibration=8)
    write_run(tmp_path, "spectral", calibration=32)
    write_run(tmp_path, "fim-lora", calibration=8)
    write_run(tmp_path, "fim-lora", calibration=32, budget="r=4")
    assert curves(tmp_path) == {"r=2": [], "r=4": []}


def test_the_page_and_its_markdown_show_the_sizes(tmp_path):
    write_run(tmp_path, "lora", correct=flags(5))
    write_sizes(tmp_path)
    page = write_report(tmp_path).read_text()
    assert 'href="#calibrations"' in page
    assert "Score against the number of calibration examples. fim-lora 8: 0.5333, 32: 0.6333, 128: 0.7333." in page
    assert "lie elsewhere than with the largest calibration" in page
    markdown = (tmp_path / "report.md").read_text()
    assert "## Calibration size" in markdown
    assert "| fim-lora | 128 | 3 | 0.7333 | 0.5899 to 0.8768 | – | – |" in markdown


def test_a_recipe_that_needs_no_data_moves_nothing(tmp_path):
    for size in (8, 32):
        write_run(tmp_path, "lora", calibration=size, label=f"lora {size}", correct=flags(5))
    (curve,) = curves(tmp_path)["r=2"]
    # The embedding's rank of zero is what the correlation goes by.
    assert [(point.moved, point.correlation, point.low) for point in curve.points] == [(0, 1, None), (None, None, None)]
    write_report(tmp_path)
