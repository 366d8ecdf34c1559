from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time

import pytest
from study_cases import (
    ENVIRONMENT,
    check_events,
    checkpoints,
    command,
    events,
    pids_at_work,
    read_json_files,
    real_study,
    run,
    same_results,
    study_file,
    wait_for,
)


@pytest.fixture
def quick(monkeypatch, capsys):
    """The command in this process, which has the heavy imports already: exit status, stdout and stderr."""
    from tailora.cli import main

    def start(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return start


def test_killed_and_started_again(tmp_path, quick):
    """In the middle of its second run, which goes on from its checkpoint; the first is not touched."""
    path, out = study_file(tmp_path, training={"max_steps": 30, "save_steps": 3}), tmp_path / "out"
    child = subprocess.Popen(command(path), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    wait_for(lambda: any(row["event"] == "done" for row in events(out)) and len(checkpoints(out)) >= 2, child)
    child.kill()
    child.wait()
    before = {row["hash"] for row in events(out) if row["event"] == "done"}
    assert len(before) == 1
    kept = {place: place.stat().st_mtime_ns for place in (out / "runs").glob("*/status.json")}
    status, printed, error = quick("study", path, "--no-report", "--json")
    assert status == 0, error
    told = json.loads(printed)
    assert (told["done"], told["new"], told["failed"]) == (2, 1, [])
    rows = check_events(out, 2)
    assert sum(row["event"] == "started" for row in rows) == 3
    untouched = [place for place in kept if json.loads(place.read_text())["hash"] in before]
    assert len(untouched) == 1
    assert all(place.stat().st_mtime_ns == kept[place] for place in untouched)
    resumed = [json.loads(place.read_text())["resumed_from_step"] for place in (out / "runs").glob("*/timings.json")]
    assert any(resumed)
    assert {run["recipe"] for run in told["runs"]} == {"lora", "spectral"}


def test_a_failed_run_is_listed_and_the_rest_goes_on(tmp_path, quick):
    bad = {"name": "bad", "recipe": "lora", "task": {"text": "no column"}}
    path = study_file(tmp_path, recipes=["lora", bad])
    status, printed, error = quick("study", path)
    assert status == 1, error
    last = error.strip().splitlines()[-1]
    assert last.startswith("tailora: 1 of 2 runs failed: bad, reviews, r=1, seed 0: ")
    assert "no column" in last
    assert "--retry-failed" in last
    assert (tmp_path / "out" / "report.html").is_file()
    assert "lora" in printed


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
        read_json_files(out)
    killed_rows = events(out)
    assert sum(row["event"] == "done" for row in killed_rows) < 24
    found = run(path)
    assert found.returncode == 0, found.stderr
    rows = check_events(out, 24)
    assert 24 < sum(row["event"] == "started" for row in rows) <= 24 + 5
    same_results(out, undisturbed, 24)
