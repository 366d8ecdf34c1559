from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time

import pytest
from study_cases import expanded

from tailora.locking import run_lock
from tailora.run_folders import is_done, run_folder
from tailora.studies.attempt import attempt, perform
from tailora.studies.drive import drive
from tailora.studies.executors import here, workers
from tailora.studies.messages import Advanced, Ended, Started
from tailora.studies.settings import Settings
from tailora.tasks.sharing import Shared


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def configs(expansion):
    return [run.config for run in expansion.final()]


def test_runs_in_this_process_share_what_they_load(tmp_path, monkeypatch):
    from tailora.tasks import calibration
    from tailora.tasks.text_classification import TextClassification

    counted = {"load": 0, "read": 0, "encode": 0, "measure": 0}

    def count(owner, name, key):
        real = getattr(owner, name)

        def counting(*args, **kwargs):
            counted[key] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    for name in ("load", "read", "encode"):
        count(TextClassification, name, name)
    count(calibration, "_measure", "measure")
    jobs = configs(expanded(tmp_path, seeds=2))
    seen = []
    ended = [m.outcome for m in here.execute(jobs, Settings(watch=seen.append)) if isinstance(m, Ended)]
    assert [(o.status, o.worked) for o in ended] == [("done", True)] * 4
    assert all(map(is_done, jobs))
    assert counted == {"load": 1, "read": 1, "encode": 1, "measure": 1}
    assert [m.hash for m in seen if isinstance(m, Started)] == [job.hash for job in jobs]
    assert {m.stage for m in seen if isinstance(m, Advanced)} >= {"load", "train", "evaluate"}
    # Without a watcher everything comes out of the iteration.
    again = list(here.execute(jobs[:1], Settings()))
    assert [isinstance(m, Ended) and not m.outcome.worked for m in again] == [True]


def test_shared_runs_are_those_that_load_everything_themselves(tmp_path):
    shared, alone = configs(expanded(tmp_path / "a", seeds=[1])), configs(expanded(tmp_path / "b", seeds=[1]))
    held = Shared()
    for one, other in zip(shared, alone, strict=True):
        # Twice: the second of them starts from models that a run has used.
        assert attempt(one, shared=held).status == attempt(other).status == "done"
    for one, other in zip(shared, alone, strict=True):
        for name in ("scores.json", "predictions.jsonl", "history.jsonl"):
            assert (run_folder(one) / name).read_bytes() == (run_folder(other) / name).read_bytes()


def test_data_that_changes_is_read_again(tmp_path):
    (config, _) = configs(expanded(tmp_path))
    held = Shared()
    before = held.prepare(config)
    assert held.prepare(config.model_copy(update={"seed": 5, "recipe": "dora"})) is before
    other = config.model_copy(update={"task": config.task.model_copy(update={"train_examples": 20})})
    assert len(held.prepare(other).training) == 20
    assert held.prepare(other).base is before.base
    place = tmp_path / "reviews0.jsonl"
    place.write_text(place.read_text() + '{"text": "good w1", "label": "pos"}\n')
    assert len(held.prepare(config).training) == len(before.training) + 1


def test_an_attempt_ends_in_an_outcome_whatever_happens(tmp_path):
    (config, _) = configs(expanded(tmp_path))
    missing = config.model_copy(update={"task": config.task.model_copy(update={"text": "no column"})})
    outcome = attempt(missing)
    assert (outcome.status, outcome.retry, outcome.worked) == ("failed", False, True)
    assert "no column" in outcome.error
    folder = run_folder(config)
    folder.mkdir(parents=True)
    messages: list = []
    with run_lock(folder):
        outcome = perform(config, messages.append)
    assert (outcome.status, outcome.worked) == ("busy", False)
    assert [type(m) for m in messages] == [Ended]

    def broken(*_):
        raise RuntimeError("the progress broke")

    outcome = attempt(config, progress=broken)
    assert (outcome.status, outcome.retry) == ("failed", True)
    assert "RuntimeError: the progress broke" in outcome.error


def test_a_worker_that_dies_is_a_failed_attempt_and_is_replaced(tmp_path):
    expansion = expanded(tmp_path, training={"max_steps": 40, "save_steps": 5})
    killed, said, children = [], [], set()

    class Watch:
        def phase(self, name, runs, missing):
            pass

        def say(self, sentence):
            said.append(sentence)

        def message(self, run, message):
            if isinstance(message, Advanced) and message.stage == "train" and message.done > 8 and not killed:
                owner = json.loads((run_folder(run.config) / ".lock").read_text())["pid"]
                killed.append(run.config.hash)
                os.kill(owner, signal.SIGKILL)
            for place in (tmp_path / "out" / "runs").glob("*/.lock"):
                with contextlib.suppress(OSError, ValueError):
                    children.add(json.loads(place.read_text())["pid"])

    result = drive(expansion, workers.execute, Settings(workers=2, logs=tmp_path / "logs"), Watch())
    assert len(result.done) == 2
    assert result.failed == []
    assert result.new == 2
    rows = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows if row["hash"] == killed[0]] == ["started", "failed", "started", "done"]
    assert "died (signal SIGKILL); memory may have run out" in next(r["error"] for r in rows if r["event"] == "failed")
    for pid in children:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    # One profile, measured by one of the two.
    assert len(list((tmp_path / "out" / "runs" / "profiles").iterdir())) == 1


@pytest.mark.slow
def test_workers_stop_with_a_checkpoint_when_the_iteration_is_closed(tmp_path):
    (config, _) = configs(expanded(tmp_path, training={"max_steps": 3000, "save_steps": 2000}))
    stream = workers.execute([config], Settings(workers=1))
    for message in stream:
        if isinstance(message, Advanced) and message.stage == "train" and message.done > 3:
            break
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    status = json.loads((run_folder(config) / "status.json").read_text())
    assert status["status"] == "interrupted"
    assert "with a checkpoint" in status["error"]
    assert not (run_folder(config) / ".lock").exists()


@pytest.mark.slow
def test_workers_whose_study_is_killed_stop_as_well(tmp_path):
    from study_cases import command, pids_at_work, wait_for

    path = tmp_path / "study.yaml"
    expanded(tmp_path, training={"max_steps": 3000, "save_steps": 2000})
    child = subprocess.Popen([*command(path), "--workers", "2"], stderr=subprocess.DEVNULL)
    wait_for(lambda: len(pids_at_work(tmp_path / "out")) == 2, child)
    at_work = pids_at_work(tmp_path / "out")
    child.kill()
    child.wait()
    wait_until_gone(at_work)
    assert not pids_at_work(tmp_path / "out")
    statuses = [json.loads(place.read_text())["status"] for place in (tmp_path / "out" / "runs").glob("*/status.json")]
    assert statuses == ["interrupted"] * 2


def wait_until_gone(pids, seconds=60):
    """An orphan has no parent here to wait for it; leaving the interpreter takes a moment as well."""
    deadline = time.monotonic() + seconds
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(pid, 0)
                assert time.monotonic() < deadline, f"process {pid} is still there"
                time.sleep(0.1)
