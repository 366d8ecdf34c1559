"""A study's own file: title, baseline, and what is expected but not there; and a page of many runs."""

from __future__ import annotations

import json
import re

import pytest
from report_fixtures import write_run, write_study
from test_report_html import Page

from tailora.report import load_runs, write_report
from tailora.report.study import load_study, missing_runs, strangers
from tailora.report.style import series_style


def facts(run, **changes):
    values = {"hash": run.hash, "role": "final", "model": "MiniLM", "task": run.task, "recipe": run.recipe}
    values |= {"budget": run.budget, "learning_rate": "0.002", "seed": str(run.seed), "folder": f"runs/{run.path.name}"}
    return values | changes


def write_file(root, runs, **changes):
    listed = [facts(run) for run in runs]
    extra = changes.pop("extra", [])
    content = {"name": "placement", "title": "Where should it go?", "baseline": "spectral", "runs": [*listed, *extra]}
    (root / "study.json").write_text(json.dumps(content | changes))


@pytest.fixture
def folder(tmp_path):
    for recipe in ("lora", "spectral"):
        for seed in (0, 1):
            write_run(tmp_path / "runs", recipe, seed, examples=20)
    return tmp_path


def test_title_name_and_baseline_come_from_the_study(folder):
    write_file(folder, load_runs(folder))
    page = write_report(folder).read_text()
    assert "<h1>Where should it go?</h1>" in page
    assert "Study placement" in page
    assert "against spectral" in page
    assert "(folder)" not in page
    assert (folder / "report.md").read_text().startswith("# Where should it go?\n\nStudy placement.")
    assert "against lora" in write_report(folder, baseline="lora").read_text()
    write_file(folder, load_runs(folder), title="", baseline="never run")
    page = write_report(folder).read_text()
    assert "<h1>Study placement</h1>" in page
    assert "against lora" in page


def test_missing_runs_are_listed_by_what_they_are(folder):
    runs = load_runs(folder)
    extra = [facts(runs[0], hash=f"{seed}" * 64, seed=str(seed), folder=f"runs/x{seed}") for seed in (3, 4)]
    extra.append(facts(runs[0], hash="e" * 64, role="search", learning_rate="0.01", folder="runs/s"))
    write_file(folder, runs, extra=extra)
    study = load_study(folder)
    found = missing_runs(study, runs)
    label = "stdlib docstrings, MiniLM, r=2, lora"
    assert [(entry.label, entry.search, entry.runs, entry.detail) for entry in found] == [
        (label, False, 2, "seeds 3, 4; learning rate 0.002"),
        (label, True, 1, "seed 0; learning rate 0.01"),
    ]
    page = write_report(folder).read_text()
    assert "The study is not complete: 3 of its 7 runs are missing." in page
    assert "2 runs, seeds 3, 4; learning rate 0.002" in page
    assert 'href="#problems"' in page
    markdown = (folder / "report.md").read_text()
    assert f"- {label} (missing): 1 search run, seed 0; learning rate 0.01" in markdown


def test_failed_and_unfinished_runs_are_not_missing(folder):
    failed = write_run(folder / "runs", "lora", 5, examples=20)
    begun = write_run(folder / "runs", "lora", 6, examples=20)
    write_file(folder, load_runs(folder))
    (failed / "status.json").write_text(
        json.dumps(
            {
                "status": "failed",
                "error": "out of memory",
                "hash": json.loads((failed / "status.json").read_text())["hash"],
            }
        )
    )
    (begun / "status.json").unlink()
    runs = load_runs(folder)
    assert len(runs.problems) == 2
    assert missing_runs(load_study(folder), runs) == []
    assert "out of memory" in write_report(folder).read_text()


def test_runs_of_an_earlier_version_are_counted(folder):
    runs = load_runs(folder)
    write_file(folder, runs[:3])
    assert strangers(load_study(folder), runs) == 1
    assert "1 run here does not belong to the study as its file is now." in write_report(folder).read_text()
    assert strangers(None, runs) == 0


@pytest.mark.parametrize("text", ["", "[]", "null", "{"])
def test_an_unreadable_file_is_none(folder, text):
    """As without it, which is the page of every other test."""
    (folder / "study.json").write_text(text)
    assert load_study(folder) is None


@pytest.mark.parametrize("text", ['{"runs": 3}', '{"runs": [1, {"seed": 2}]}', '{"name": {}}'])
def test_a_damaged_file_does_not_stop_the_report(folder, text):
    (folder / "study.json").write_text(text)
    study = load_study(folder)
    assert study is not None
    assert study.expected == ()
    Page(write_report(folder).read_text())


def test_no_file_no_study(folder):
    assert load_study(folder) is None
    assert missing_runs(None, load_runs(folder)) == []


def test_words_from_the_file_are_escaped(folder):
    evil = "<script>alert(1)</script>"
    extra = [{"hash": "f" * 64, "task": evil, "recipe": evil, "seed": evil, "folder": evil}]
    write_file(folder, load_runs(folder), name=evil, title=evil, extra=extra)
    page = write_report(folder).read_text()
    assert "<script" not in page
    Page(page)


def test_many_combinations_fold_away_and_the_page_stays_whole(tmp_path):
    write_study(tmp_path, seeds=1, budgets=("r=2", "r=4"), examples=20)
    for task in ("one", "two"):
        write_run(tmp_path, task=task, examples=20)
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert text.count('<details class="block"') >= 3 * 4
    assert len(re.findall(r'<details class="block" open>', text)) == 2
    assert len(page.named("figcaption")) == len(page.named("svg"))


def test_no_two_recipes_look_alike():
    styles = series_style([str(number) for number in range(64)])
    looks = {(style["color"], str(style["linestyle"]), style["marker"]) for style in styles.values()}
    assert len(looks) == 64
    assert len({(style["color"], style["marker"]) for style in list(styles.values())[:24]}) == 24
