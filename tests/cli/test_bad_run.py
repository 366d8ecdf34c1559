"""What goes wrong while a run is at work, through the real command line: the exact sentence, and what is kept."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

import tailora.artifacts
import tailora.runs
from tailora.checkpoints import last_checkpoint
from tailora.config import load_config
from tailora.locking import run_lock
from tailora.runs import run_folder

TRAIN = "train HOME/text.yaml output=TMP/runs"


def folder_of(home, tmp_path, *overrides):
    return run_folder(load_config(home / "text.yaml", [f"output={tmp_path / 'runs'}", *overrides]))


def status_of(folder):
    return json.loads((folder / "status.json").read_text(encoding="utf-8"))


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(command, home, tmp_path, monkeypatch):
    folder, step, calls = folder_of(home, tmp_path), torch.optim.AdamW.step, []

    def poisoned(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 3:
            self.param_groups[0]["params"][0].data.fill_(float("nan"))
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", poisoned)
    result = command(TRAIN)
    assert (result.status, result.out) == (1, "")
    assert result.said == [
        "the training loss became nan at step 4; lower training.learning_rate=0.01 or training.max_grad_norm, or raise "
        f"training.warmup_ratio; checkpoint-2 is kept in 'TMP/runs/{folder.name}/checkpoints'"
    ]
    assert last_checkpoint(folder / "checkpoints").name == "checkpoint-2"
    assert status_of(folder)["status"] == "failed"
    monkeypatch.undo()
    assert command(TRAIN).status == 0


@pytest.mark.parametrize(
    ("stage", "place", "error", "sentence"),
    [
        (
            "train", "train", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "memory ran out (train); training.per_device_train_batch_size=8 is too much; use "
            "training.per_device_train_batch_size=4 training.gradient_accumulation_steps=2, which is the same 8 "
            "examples per step",
        ),
        (
            "profile", "cached_profile", MemoryError(),
            "memory ran out (profile); lower calibration.batch_size=4, such as 2: the profile does not depend on it",
        ),
        (
            "evaluate", "score", RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "memory ran out (evaluate); lower training.per_device_eval_batch_size=32, such as 16: the scores do not "
            "depend on it",
        ),
    ],
)  # fmt: skip
def test_out_of_memory_names_a_batch_size(command, home, tmp_path, monkeypatch, stage, place, error, sentence):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(tailora.runs, place, fail)
    result = command(TRAIN)
    assert (result.status, result.out, result.said) == (1, "", [sentence])
    assert status_of(folder_of(home, tmp_path))["error"] == sentence


def test_a_full_disk_leaves_no_part_of_a_file(command, home, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tailora.artifacts.os, "fsync", full)
    result, folder = command(TRAIN), folder_of(home, tmp_path)
    assert (result.status, result.said) == (
        1,
        [f"the disk of 'TMP/runs/{folder.name}' is full; free some space and run the same command again"],
    )
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(tailora.artifacts.os, "fsync", full)
    result = command("plan --profile HOME/p -o TMP/plan.json")
    assert (result.status, result.out, result.said) == (
        1,
        "",
        ["the disk of 'TMP' is full; free some space and run the same command again"],
    )
    assert not list(tmp_path.glob("*plan.json*"))


def test_a_folder_that_cannot_be_written(command, home, tmp_path, monkeypatch):
    (tmp_path / "runs").write_text("")
    result, folder = command(TRAIN), folder_of(home, tmp_path)
    assert (result.status, result.said) == (
        2,
        [f"'TMP/runs/{folder.name}' is in the way (Not a directory); choose another output folder"],
    )
    (tmp_path / "runs").unlink()

    # The superuser may write anywhere, so the system's answers are given in its place.
    def closed(self, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", closed)
        result = command(TRAIN)
    assert (result.status, result.said) == (
        2,
        [
            f"'TMP/runs/{folder.name}' cannot be used (Read-only file system); choose another folder, or change its "
            "rights"
        ],
    )
    monkeypatch.setattr(tailora.artifacts.os, "access", lambda _, mode: not mode & os.W_OK)
    for line in ("plan --profile HOME/p -o TMP/new/plan.json", "profile HOME/llama -d HOME/counting.txt -o TMP/new"):
        result = command(line)
        assert (result.status, result.out, result.said) == (
            2,
            "",
            [
                "'TMP/new' cannot be written to: folder 'TMP' is closed to writing; choose another place, or change "
                "its rights"
            ],
        )
    assert list(tmp_path.iterdir()) == []


def test_two_processes_on_one_run(command, home, tmp_path):
    folder = folder_of(home, tmp_path)
    folder.mkdir(parents=True)
    with run_lock(folder):
        owner = json.loads((folder / ".lock").read_text(encoding="utf-8"))
        result = command(TRAIN)
    assert (result.status, result.out, result.said) == (
        2,
        "",
        [
            f"run folder 'TMP/runs/{folder.name}' is in use by process {os.getpid()} on {owner['host']} since "
            f"{owner['since']}; wait for it (--wait SECONDS), or stop that process"
        ],
    )
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "name", "status"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)]
)
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(command, home, tmp_path, monkeypatch, number, name, status):
    step, calls = torch.optim.AdamW.step, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    sentence = f"stopped by {name} at step 2 of 4, with a checkpoint; run the same command again to continue"
    result, folder = command(TRAIN), folder_of(home, tmp_path)
    assert (result.status, result.out, result.said[-1]) == (status, "", sentence)
    assert (status_of(folder)["status"], status_of(folder)["error"]) == ("interrupted", sentence)
    assert last_checkpoint(folder / "checkpoints").name == "checkpoint-2"
    monkeypatch.undo()
    assert command(TRAIN).status == 0
    assert json.loads((folder / "timings.json").read_text(encoding="utf-8"))["resumed_from_step"] == 2


def test_plans_and_adapters_of_another_model(command, home, tmp_path):
    text = Path(json.loads(command(f"{TRAIN} --json").out)["run"])
    reviews = Path(json.loads(command("train HOME/run.yaml output=TMP/runs --json").out)["run"])
    shutil.copytree(text / "adapter", tmp_path / "mixed" / "adapter")
    shutil.copy(reviews / "config.json", tmp_path / "mixed" / "config.json")
    refused = command("eval TMP/mixed")
    assert (refused.status, refused.out, refused.said) == (
        2,
        "",
        [
            "adapter 'TMP/mixed' adapts 'model.layers.0.mlp.down_proj', which model 'HOME/bert' lacks: it was trained "
            "on another model; give it with its own base"
        ],
    )
    status = status_of(text) | {"status": "interrupted"}
    (text / "status.json").write_text(json.dumps(status), encoding="utf-8")
    shutil.copy(reviews / "plan.json", text / "plan.json")
    refused = command(TRAIN)
    assert (refused.status, refused.out, refused.said) == (
        2,
        "",
        [
            "the plan has the target 'bert.encoder.layer.0.attention.self.query', which this model lacks: it was made "
            "for another model; plan again for this one"
        ],
    )


def test_long_sequences_are_cut_and_counted(command, tmp_path, caplog):
    rows = [{"text": " ".join(f"w{word % 40}" for word in range(700 if row % 4 == 0 else 3))} for row in range(40)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = command(f"{TRAIN} task.train=TMP/long.jsonl task.max_length=2000 training.max_steps=1")
    assert result.status == 0, result.err
    said = [
        record.getMessage().replace(str(tmp_path), "TMP")
        for record in caplog.records
        if "were cut" in record.getMessage()
    ]
    assert said == [
        "TMP/long.jsonl: 9 of 36 training examples were cut to 64 tokens; task.max_length sets the length",
        "TMP/long.jsonl: 1 of 4 evaluation examples were cut to 64 tokens; task.max_length sets the length",
    ]
    counts = json.loads(next((tmp_path / "runs").glob("*/counts.json")).read_text(encoding="utf-8"))
    assert (counts["training_examples"]["limit"], counts["training_examples"]["cut"]) == (64, 9)
