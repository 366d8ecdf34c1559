from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml
from study_cases import study_file

from tiny_runs import read_rows

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def command(path, *more):
    return [sys.executable, "-m", "tailora", "study", str(path), "--no-report", *more]


def run(path, *more):
    return subprocess.run(command(path, *more), capture_output=True, text=True, check=False, env=ENVIRONMENT)


def pids_at_work(out):
    found = set()
    for place in (out / "runs").glob("*/.lock"):
        try:
            pid = json.loads(place.read_text())["pid"]
            os.kill(pid, 0)
            found.add(pid)
        except (OSError, ValueError, KeyError):
            continue
    return found


def wait_for(what, child, seconds=180):
    deadline = time.monotonic() + seconds
    while not what():
        assert child.poll() is None, "the study ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def events(out):
    return read_rows(out / "events.jsonl") if (out / "events.jsonl").exists() else []


def check_events(out, runs):
    rows = events(out)
    hashes = {row["hash"] for row in rows}
    assert len(hashes) == runs
    for hash in hashes:
        told = [row["event"] for row in rows if row["hash"] == hash]
        assert told.count("done") == 1, told
        assert "started" not in told[told.index("done") :], told
    return rows


def close(mine, theirs):
    """Equal, but for the last digits of a run that was cut off and continued."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(close(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, list) and isinstance(theirs, list):
        return len(mine) == len(theirs) and all(map(close, mine, theirs))
    return mine == (pytest.approx(theirs, rel=1e-5, abs=1e-8) if isinstance(theirs, float) else theirs)


def checkpoints(out):
    return list((out / "runs").glob("*/checkpoints/checkpoint-*"))


def test_killed_twice_and_started_again(tmp_path):
    path, out = study_file(tmp_path, seeds=2, training={"max_steps": 30, "save_steps": 3}), tmp_path / "out"
    for finished in (0, 1):
        child = subprocess.Popen(command(path), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
        done = lambda: sum(row["event"] == "done" for row in events(out))  # noqa: E731
        wait_for(lambda: done() >= finished and len(checkpoints(out)) >= 2, child)  # noqa: B023
        child.kill()
        child.wait()
    before = {row["hash"] for row in events(out) if row["event"] == "done"}
    assert before
    kept = {place: place.stat().st_mtime_ns for place in (out / "runs").glob("*/status.json")}
    again = run(path, "--json")
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert (told["done"], told["failed"]) == (4, [])
    assert told["new"] <= 4 - len(before)
    rows = check_events(out, 4)
    assert sum(row["event"] == "started" for row in rows) >= 5
    for place, time_ns in kept.items():
        if json.loads(place.read_text())["hash"] in before:
            assert place.stat().st_mtime_ns == time_ns
    resumed = [json.loads(place.read_text())["resumed_from_step"] for place in (out / "runs").glob("*/timings.json")]
    assert any(resumed)
    assert {run["recipe"] for run in told["runs"]} == {"lora", "spectral"}


def test_a_failed_run_is_listed_and_the_rest_goes_on(tmp_path):
    bad = {"name": "bad", "recipe": "lora", "task": {"text": "no column"}}
    path = study_file(tmp_path, recipes=["lora", bad])
    found = subprocess.run(
        [word for word in command(path) if word != "--no-report"],
        capture_output=True, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert found.returncode == 1, found.stderr
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("tailora: 1 of 2 runs failed: bad, reviews, r=1, seed 0: ")
    assert "no column" in last
    assert "--retry-failed" in last
    assert (tmp_path / "out" / "report.html").is_file()
    assert "lora" in found.stdout


def test_a_dry_run_does_nothing(tmp_path, capsys):
    from tailora.cli import main

    path = study_file(tmp_path, seeds=3)
    with pytest.raises(SystemExit) as end:
        main(["study", str(path), "--dry-run", "--json"])
    assert not end.value.code
    told = json.loads(capsys.readouterr().out)
    assert told["axes"]["recipe"] == ["lora", "spectral"]
    assert told["seconds"] is None
    assert [(row["recipe"], row["runs"], row["missing"]) for row in told["rows"]] == [
        ("lora", 3, 3),
        ("spectral", 3, 3),
    ]
    with pytest.raises(SystemExit):
        main(["study", str(path), "--dry-run"])
    shown = capsys.readouterr().out
    assert "6 runs, 6 to be done; estimated time: unknown" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "sedes=1"], "unknown key 'sedes'; did you mean 'seeds'"),
        (["--workers", "2", "--ray", "local"], "are both given; keep one"),
        (["--set", "scale=tiny"], "is no scale of this study"),
    ],
)
def test_wrong_input_is_exit_status_two(tmp_path, capsys, more, words):
    from tailora.cli import main

    with pytest.raises(SystemExit) as end:
        main(["study", str(study_file(tmp_path)), *more])
    assert end.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "number", "status"), [([], signal.SIGINT, 130), (["--workers", "2"], signal.SIGTERM, 143)]
)
def test_a_stopped_study_leaves_checkpoints_and_nothing_else(tmp_path, more, number, status):
    path, out = study_file(tmp_path, training={"max_steps": 3000, "save_steps": 2000}), tmp_path / "out"
    child = subprocess.Popen(command(path, *more), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    wait_for(lambda: len(pids_at_work(out)) == (2 if more else 1), child)
    wait_for(lambda: list((out / "runs").glob("*/history.jsonl")), child)
    at_work = pids_at_work(out)
    child.send_signal(number)
    error = child.communicate(timeout=120)[1]
    assert child.returncode == status, error
    assert "run the same command again to continue" in error.strip().splitlines()[-1]
    assert not list((out / "runs").glob("*/.lock"))
    assert checkpoints(out)
    for pid in at_work:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    statuses = [json.loads(place.read_text())["status"] for place in (out / "runs").glob("*/status.json")]
    assert statuses == ["interrupted"] * len(at_work)


@pytest.mark.slow
def test_two_studies_of_one_folder_share_the_work(tmp_path):
    path, out = study_file(tmp_path, seeds=3, training={"max_steps": 20}), tmp_path / "out"
    both = [
        subprocess.Popen(
            command(path, "--json"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT
        )
        for _ in range(2)
    ]
    told = [json.loads(child.communicate(timeout=400)[0]) for child in both]
    assert [child.returncode for child in both] == [0, 0]
    assert [one["done"] for one in told] == [6, 6]
    assert sum(one["new"] for one in told) == 6
    rows = check_events(out, 6)
    assert sum(row["event"] == "started" for row in rows) == 6


def real_study(folder, stories260k, data_root):
    values = {
        "base": {
            "model": str(stories260k),
            "task": {"kind": "causal-lm", "train": str(data_root / "text" / "tinyshakespeare.txt"), "max_length": 64,
                     "train_examples": 200, "eval_examples": 16},
            "calibration": {"examples": 8},
            "training": {"max_steps": 12, "per_device_train_batch_size": 4, "save_steps": 3, "logging_steps": 3},
        },
        "recipes": ["lora", "spectral", {"name": "attention only", "recipe": "lora", "placement": "attention"}],
        "budgets": ["r=1", "r=2"], "seeds": 4, "learning_rate": 0.01, "output": "out",
    }  # fmt: skip
    folder.mkdir()
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path, folder / "out"


@pytest.mark.slow
def test_five_kills_at_random_moments_change_nothing(stories260k, data_root, tmp_path):
    whole, undisturbed = real_study(tmp_path / "whole", stories260k, data_root)
    start = time.monotonic()
    found = run(whole)
    assert found.returncode == 0, found.stderr
    seconds = time.monotonic() - start
    path, out = real_study(tmp_path / "killed", stories260k, data_root)
    draw, kills = random.Random(0), 0
    while kills < 5:
        child = subprocess.Popen(command(path), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
        held = len(events(out))
        # From its first event on: a process that is still importing is no study yet.
        wait_for(lambda: len(events(out)) > held, child)  # noqa: B023
        time.sleep(draw.uniform(0, seconds / 12))
        child.kill()
        child.wait()
        kills += 1
        for place in out.rglob("*.json"):
            if not any(part.startswith((".", "checkpoint")) for part in place.relative_to(out).parts):
                json.loads(place.read_text(encoding="utf-8"))
    killed_rows = events(out)
    assert sum(row["event"] == "done" for row in killed_rows) < 24
    found = run(path)
    assert found.returncode == 0, found.stderr
    rows = check_events(out, 24)
    assert 24 < sum(row["event"] == "started" for row in rows) <= 24 + 5
    folders = sorted(place.name for place in (undisturbed / "runs").iterdir())
    assert sorted(place.name for place in (out / "runs").iterdir() if not place.name.startswith(".")) == folders
    assert len(folders) == 24 + 1
    for name in folders:
        if name == "profiles":
            continue
        for file in ("scores.json", "plan.json", "counts.json"):
            mine, theirs = (json.loads((place / "runs" / name / file).read_text()) for place in (out, undisturbed))
            assert close(mine, theirs), (name, file)
        mine, theirs = (read_rows(place / "runs" / name / "predictions.jsonl") for place in (out, undisturbed))
        assert close(mine, theirs), name
