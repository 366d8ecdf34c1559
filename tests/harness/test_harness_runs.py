"""Whole runs with lm-eval: the files, the score that decides, continuing, and scoring again."""

from __future__ import annotations

import json

import pytest
from harness_cases import save_tasks

from tailora.cli import main
from tailora.run_folders import is_done
from tailora.runs import evaluate_adapter, execute, run_folder
from tiny_runs import read_rows, text_config

PRIMARY = "counting/acc"


def load(folder, name):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def configured(folder, **section):
    places = {"include_path": str(folder / "tasks"), "data_root": str(folder / "data")}
    if not (folder / "tasks").exists():
        save_tasks(folder)
    return text_config(folder, harness={"tasks": ["counting", "writing"], **places, **section})


def said(capsys, *arguments):
    """Run a command and return its JSON."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments), "--json"])
    assert not end.value.code
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = configured(tmp_path_factory.mktemp("harness"), primary=PRIMARY)
    return config, execute(config)


def test_the_primary_score_and_its_examples(run):
    _, folder = run
    scores, records, rows = (
        load(folder, "scores"),
        read_rows(folder / "predictions.jsonl"),
        read_rows(folder / "harness.jsonl"),
    )
    assert (scores["primary"], scores["higher_is_better"], scores["examples"]) == (PRIMARY, True, 12)
    assert scores[PRIMARY] == sum(record["correct"] for record in records) / 12
    assert [record["index"] for record in records] == list(range(12))
    assert all(record["correct"] == (record["label"] == record["prediction"]) for record in records)
    assert all(record["text"].count("w") == 4 for record in records)
    assert set(scores) >= {"loss", "counting/acc_norm", "writing/exact_match"}
    assert [(row["task"], row["index"]) for row in rows] == [
        (task, number) for task in ("counting", "writing") for number in range(12)
    ]
    assert load(folder, "harness")["tasks"]["counting"] == {"version": 2, "num_fewshot": 0, "examples": 12}
    assert load(folder, "config")["harness"]["primary"] == PRIMARY
    assert read_rows(folder / "history.jsonl")[-1]["loss"] == scores["loss"]


def test_the_adapter_gives_the_runs_score(run, capsys):
    _, folder = run
    stored = load(folder, "scores")
    assert evaluate_adapter(folder) == stored
    assert said(capsys, "eval", folder) == stored
    other = said(capsys, "eval", folder, "--harness", "writing", "--limit", 5)
    rows = [row for row in read_rows(folder / "harness.jsonl") if row["task"] == "writing"][:5]
    assert other["writing/exact_match"] == sum(row["metrics"]["exact_match"] for row in rows) / 5
    assert "counting/acc" not in other
    assert other["primary"] == "loss"


def test_without_a_primary_the_tasks_own_score_decides(run, tmp_path, capsys):
    _, folder = run
    beside = execute(configured(tmp_path))
    mine, theirs = load(beside, "scores"), load(folder, "scores")
    assert (mine["primary"], mine[PRIMARY], mine["loss"]) == ("loss", theirs[PRIMARY], theirs["loss"])
    assert read_rows(beside / "harness.jsonl") == read_rows(folder / "harness.jsonl")
    plain_config = text_config(tmp_path)
    plain = execute(plain_config)
    assert not (plain / "harness.jsonl").exists()
    assert "harness" not in load(plain, "config")
    # Training and the task's own evaluation are the same with and without lm-eval.
    assert (plain / "predictions.jsonl").read_bytes() == (beside / "predictions.jsonl").read_bytes()
    assert (plain / "history.jsonl").read_bytes() == (beside / "history.jsonl").read_bytes()
    places = ("--include-path", tmp_path / "tasks", "--data-root", tmp_path / "data")
    assert said(capsys, "eval", plain, "--harness", "counting", *places)[PRIMARY] == theirs[PRIMARY]
    with pytest.raises(SystemExit) as end:
        main(["eval", str(plain), "--limit", "3"])
    assert end.value.code == 2
    assert "'harness.tasks' is missing; add it" in capsys.readouterr().err


def test_a_run_that_was_stopped_in_the_scoring_ends_with_the_same_results(run, tmp_path):
    _, folder = run
    config = configured(tmp_path, primary=PRIMARY)
    assert config.hash == run[0].hash

    def stop(stage, done, total):
        if stage == "harness":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(config, progress=stop)
    assert not is_done(config)
    assert load(run_folder(config), "status")["status"] == "interrupted"
    again = execute(config)
    for name in ("scores.json", "predictions.jsonl", "harness.jsonl", "harness.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_wrong_tasks_end_a_run_before_it_loads_a_model(tmp_path, capsys):
    config = configured(tmp_path, primary="counting/f1")
    broken = config.model_copy(update={"model": str(tmp_path / "nothing")})
    path = tmp_path / "run.json.yaml"
    path.write_text(json.dumps(broken.to_dict()), encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(["train", str(path)])
    assert end.value.code == 2
    assert "unknown metric of counting in harness.primary 'f1'" in capsys.readouterr().err
