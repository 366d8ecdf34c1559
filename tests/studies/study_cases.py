"""Studies as files: of tiny runs, and of 24 short ones on real data; the command that does them, and what is left."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tailora.checkpoints import last_checkpoint
from tailora.studies.expansion import Expansion, expand
from tailora.studies.files import load_study
from tiny_runs import read_rows, review_config

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def base(folder: Path, **training) -> dict:
    """The configuration that tiny runs share, without what a study decides."""
    values = review_config(folder).model_dump(mode="json", exclude_unset=True)
    for key in ("output", "seed", "label", "budget"):
        values.pop(key, None)
    values["training"] |= {"max_steps": 6, "save_steps": 2, "logging_steps": 2, "use_cpu": True} | training
    values["training"].pop("eval_steps", None)
    values["task"]["name"] = "reviews"
    return values


def study_file(folder: Path, *, training: dict | None = None, **keys) -> Path:
    """Write a study of two recipes and one seed; ``keys`` replace its keys."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "base": base(folder, **(training or {})),
        "recipes": ["lora", "spectral"],
        "budgets": ["r=1"],
        "seeds": 1,
        "learning_rate": 0.01,
        "output": "out",
    }
    path = folder / "study.yaml"
    kept = {key: value for key, value in (values | keys).items() if value is not None}
    path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    return path


def expanded(folder: Path, *overrides: str, **keys) -> Expansion:
    return expand(load_study(study_file(folder, **keys), overrides))


def finish(run, score: float, *, loss: float = 1.0, higher: bool = True) -> None:
    """Write what a finished run leaves behind, as far as studies read it."""
    from tailora.run_folders import run_folder, write_status

    folder = run_folder(run.config)
    folder.mkdir(parents=True, exist_ok=True)
    scores = {"primary": "accuracy", "accuracy": score, "loss": loss, "higher_is_better": higher}
    (folder / "scores.json").write_text(json.dumps(scores))
    timings = {"train_s": 2.0, "evaluate_s": 1.0, "total_s": 4.0, "resumed_from_step": 0}
    (folder / "timings.json").write_text(json.dumps(timings))
    (folder / "config.json").write_text(json.dumps(run.config.to_dict()))
    write_status(folder, run.config, "done", None)


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


def children(pid):
    """Ids of a process's children; Ray's workers are those of their node's raylet."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.add(int(stat.parent.name))
    return found


def amid_training(out, workers):
    """Folders of the runs on which one of some processes works, with a whole checkpoint and steps left to do."""
    found = []
    for lock in (out / "runs").glob("*/.lock"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            checkpoint = last_checkpoint(lock.parent / "checkpoints")
            if json.loads(lock.read_text())["pid"] in workers and checkpoint and not checkpoint.name.endswith("-12"):
                found.append(lock.parent)
    return found


def hash_of(folder):
    return json.loads((folder / "status.json").read_text())["hash"]


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


def read_json_files(out):
    """Read every JSON file of a study but those that are still being written under another name."""
    for place in out.rglob("*.json"):
        if not any(part.startswith((".", "checkpoint")) for part in place.relative_to(out).parts):
            json.loads(place.read_text(encoding="utf-8"))


def same_results(out, undisturbed, runs):
    """Compare what every run of two studies has left behind."""
    folders = sorted(place.name for place in (undisturbed / "runs").iterdir())
    assert sorted(place.name for place in (out / "runs").iterdir() if not place.name.startswith(".")) == folders
    assert len(folders) == runs + 1
    for name in folders:
        if name == "profiles":
            continue
        for file in ("scores.json", "plan.json", "counts.json"):
            mine, theirs = (json.loads((place / "runs" / name / file).read_text()) for place in (out, undisturbed))
            assert close(mine, theirs), (name, file)
        mine, theirs = (read_rows(place / "runs" / name / "predictions.jsonl") for place in (out, undisturbed))
        assert close(mine, theirs), name
