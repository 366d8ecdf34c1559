"""Loading run folders: what is a run, what is a problem, and that nothing crashes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from report_fixtures import write_run

from tailora.errors import UserError
from tailora.report import load_runs


def test_finished_runs_are_loaded_in_order_and_the_rest_is_listed(study):
    runs = load_runs(study)
    assert [(run.recipe, run.seed) for run in runs] == [
        (recipe, seed) for recipe in ("fim-lora", "lora", "spectral") for seed in (0, 1)
    ]
    assert {problem.status for problem in runs.problems} == {"unfinished", "broken"}
    assert all(problem.left_out for problem in runs.problems)
    assert {problem.recipe for problem in runs.problems} == {"lora", "spectral"}
    run = runs[2]
    assert (run.kind, run.task, run.budget, run.learning_rate) == (
        "text-classification",
        "stdlib docstrings",
        "r=2",
        0.002,
    )
    assert run.adapter_params == run.plan["total_params"]
    assert len(run.predictions) == 600


def test_one_run_folder_is_enough(tmp_path):
    folder = write_run(tmp_path)
    assert [run.path for run in load_runs(folder)] == [folder]


def test_folders_deeper_than_three_levels_are_not_searched(tmp_path):
    write_run(tmp_path / "a" / "b")
    assert len(load_runs(tmp_path)) == 1
    write_run(tmp_path / "deep" / "1" / "2" / "3")
    with pytest.raises(UserError, match="no run found"):
        load_runs(tmp_path / "deep")


@pytest.mark.parametrize("make", [lambda p: p / "absent", lambda p: p])
def test_a_path_without_runs_is_the_users_error(tmp_path, make):
    with pytest.raises(UserError, match="give"):
        load_runs(make(tmp_path))


def test_a_file_is_the_users_error(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match="is a file"):
        load_runs(tmp_path / "x.json")


def test_a_model_folder_is_not_a_run(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(UserError, match="no run found"):
        load_runs(tmp_path)


DAMAGE = {
    "status.json": ['{"status": "do', "[]", "null", '{"status": 3}'],
    "config.json": ["", "[1]"],
    "plan.json": [
        "{}",
        '{"targets": [{"name": "x", "role": "head", "rank": 1, "shape": 1}]}',
        '{"targets": [1]}',
        '{"targets": [{"name": "x"}]}',
        "\x00",
        "[" * 100_000,
    ],
    "scores.json": [
        '{"primary": "accuracy"}',
        '{"primary": "accuracy", "accuracy": NaN}',
        '{"primary": 3}',
        '{"primary": "a", "a": true}',
    ],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in DAMAGE.items() for text in texts])
def test_a_damaged_folder_is_a_problem_and_not_a_crash(tmp_path, name, text):
    write_run(tmp_path, seed=1)
    (write_run(tmp_path, seed=0) / name).write_text(text)
    runs = load_runs(tmp_path)
    assert [run.seed for run in runs] == [1]
    assert len(runs.problems) == 1
    assert runs.problems[0].left_out


@pytest.mark.parametrize("name", ["history.jsonl", "predictions.jsonl", "signals.json", "timings.json", "counts.json"])
def test_a_damaged_side_file_costs_only_that_file(tmp_path, name):
    (write_run(tmp_path) / name).write_text('{"half": ')
    runs = load_runs(tmp_path)
    assert len(runs) == 1
    assert [problem.left_out for problem in runs.problems] == [False]


def test_missing_side_files_are_no_problem(tmp_path):
    folder = write_run(tmp_path)
    for name in ("history.jsonl", "predictions.jsonl", "signals.json", "timings.json", "counts.json"):
        (folder / name).unlink()
    runs = load_runs(tmp_path)
    assert len(runs) == 1
    assert not runs.problems


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_other_states_are_named_with_their_error(tmp_path, status):
    folder = write_run(tmp_path, status=status)
    (folder / "status.json").write_text(json.dumps({"status": status, "error": "out of memory", "hash": "h"}))
    runs = load_runs(tmp_path)
    assert not runs
    assert runs.problems[0].status == status
    assert "out of memory" in runs.problems[0].reason


def test_a_copied_folder_is_not_another_seed(tmp_path):
    folder = write_run(tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    runs = load_runs(tmp_path)
    assert len(runs) == 1
    assert [problem.status for problem in runs.problems] == ["copy"]


def test_importing_the_report_does_not_import_torch(study):
    code = (
        "import sys, tailora.report as r, tailora.report.html, tailora.report.terminal\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"r.write_report({str(study)!r}, {str(study.parent / 'subprocess' / 'report.html')!r})\n"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
