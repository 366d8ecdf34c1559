"""What goes wrong on real machines: two processes, signals, kills, full disks, no memory, files changed by hand."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import tailora.artifacts
import tailora.runs
from tailora.checkpoints import drop_poisoned, last_checkpoint
from tailora.cli import main
from tailora.errors import TrainingError, UserError
from tailora.failures import StorageError, explain
from tailora.locking import LOCK, BusyError, run_lock
from tailora.masks import FisherMask
from tailora.plans import Plan
from tailora.runs import execute, is_done, run_folder
from tailora.stopping import Interrupted
from tiny_runs import read_rows, review_config, text_config


def load(folder, name):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


HOLDER = """
import sys, time
from pathlib import Path
from tailora.locking import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(folder, seconds):
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), str(seconds)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"held\n"
    return child


def test_second_process_is_refused_then_waits_then_takes_over_from_the_dead(tmp_path):
    child = holder(tmp_path, 60)
    with pytest.raises(BusyError, match=rf"in use by process {child.pid} on .*--wait SECONDS"), run_lock(tmp_path):
        pass
    started = time.monotonic()
    with pytest.raises(BusyError), run_lock(tmp_path, wait=0.5):
        pass
    assert 0.5 <= time.monotonic() - started < 5
    child.kill()
    child.wait()
    assert (tmp_path / LOCK).exists()
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()
    child = holder(tmp_path, 0.6)
    with run_lock(tmp_path, wait=30):
        assert child.wait() == 0


def test_no_two_threads_are_ever_inside(tmp_path):
    inside, most, done = [], [], []

    def work():
        with run_lock(tmp_path, wait=60):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()
        done.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(done), max(most)) == (8, 1)


def test_a_busy_run_is_refused_and_a_waiting_one_finds_it_done(tmp_path, capsys):
    config = text_config(tmp_path, training={"max_steps": 2})
    folder = run_folder(config)
    folder.mkdir(parents=True)
    yaml = tmp_path / "run.yaml"
    yaml.write_text(json.dumps(config.to_dict()), encoding="utf-8")
    with run_lock(folder):
        with pytest.raises(SystemExit) as end:
            main(["train", str(yaml)])
        assert end.value.code == 2
        assert "is in use by process" in capsys.readouterr().err
        waiting = threading.Thread(target=execute, args=(config,), kwargs={"wait": 60})
        waiting.start()
    waiting.join()
    assert is_done(config)
    assert not (folder / LOCK).exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_of_the_very_step(tmp_path, number, status, capfd):
    config = text_config(tmp_path, training={"max_steps": 12, "save_steps": 100, "lr_scheduler_type": "cosine"})
    before = signal.getsignal(number)

    def stop(stage, done, total):
        if (stage, done) == ("train", 5):
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=r"at step 5 of 12, with a checkpoint; run the same command again") as caught:
        execute(config, progress=stop)
    assert caught.value.exit_code == status
    assert signal.getsignal(number) is before
    folder = run_folder(config)
    assert last_checkpoint(folder / "checkpoints").name == "checkpoint-5"
    stored = load(folder, "status")
    assert (stored["status"], stored["error"]) == ("interrupted", str(caught.value))
    assert "stopping after this step" in capfd.readouterr().err
    execute(config)
    assert load(folder, "timings")["resumed_from_step"] == 5
    whole = execute(config.model_copy(update={"output": str(tmp_path / "whole")}))
    assert load(folder, "scores")["loss"] == pytest.approx(load(whole, "scores")["loss"], rel=1e-5)


def test_a_second_signal_and_one_outside_training_stop_at_once(tmp_path):
    config = text_config(tmp_path, training={"max_steps": 12, "save_steps": 100})
    seen = []

    def stop(stage, done, total):
        seen.append((stage, done))
        if (stage, done) in (("train", 5), ("profile", 4)):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped by SIGTERM; run the same"):
        execute(config, progress=stop)
    assert seen[-1] == ("profile", 4)
    execute(config.model_copy(update={"seed": 1, "training": config.training.model_copy(update={"max_steps": 1})}))
    with pytest.raises(Interrupted):
        execute(config, progress=stop)
    assert seen[-1] == ("train", 5)
    assert last_checkpoint(run_folder(config) / "checkpoints") is None
    assert load(run_folder(config), "status")["status"] == "interrupted"


def test_the_command_line_says_how_to_resume(tmp_path, capsys, monkeypatch):
    yaml = tmp_path / "run.yaml"
    yaml.write_text(json.dumps(text_config(tmp_path).to_dict()), encoding="utf-8")
    for error, status, words in (
        (Interrupted("stopped by SIGTERM at step 3; run it again", 15), 143, "stopped by SIGTERM at step 3"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), 2, "'/a/b' cannot be used (Permission denied)"),
        (LookupError("strange\nthing"), 1, "LookupError: strange thing; this should not happen"),
    ):

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(tailora.runs, "execute", fail)
        with pytest.raises(SystemExit) as end:
            main(["train", str(yaml)])
        said = capsys.readouterr().err
        assert end.value.code == status
        assert words in said
        assert "Traceback" not in said


def test_divergence_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    config = text_config(tmp_path, training={"max_steps": 12})
    original = torch.optim.AdamW.step
    calls = []

    def step(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 8:  # the weights of checkpoint-8 are poisoned, which the loss of step 9 shows
            self.param_groups[0]["params"][0].data.fill_(float("nan"))
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(TrainingError, match=r"became nan at step 9; .*; checkpoint-4 is kept in "):
        execute(config)
    folder = run_folder(config)
    assert last_checkpoint(folder / "checkpoints").name == "checkpoint-4"
    assert drop_poisoned(folder / "checkpoints").name == "checkpoint-4"
    assert load(folder, "status")["status"] == "failed"
    monkeypatch.undo()
    execute(config)
    assert load(folder, "timings")["resumed_from_step"] == 4


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [
        ("train", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
         "use training.per_device_train_batch_size=4 training.gradient_accumulation_steps=2, which is the same 8"),
        ("train", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
         "gradient_accumulation_steps=2"),
        ("cached_profile", MemoryError(), "lower calibration.batch_size=4, such as 2"),
        ("score", RuntimeError("MPS backend out of memory"), "lower training.per_device_eval_batch_size=32, such as"),
    ],
)  # fmt: skip
def test_out_of_memory_names_what_needs_less(tmp_path, monkeypatch, place, error, words):
    def fail(*args, **kwargs):
        raise error

    config = text_config(tmp_path, training={"max_steps": 1})
    monkeypatch.setattr(tailora.runs, place, fail)
    with pytest.raises(TrainingError) as caught:
        execute(config)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert load(run_folder(config), "status")["error"] == str(caught.value)


def test_full_disk_and_closed_folders(tmp_path, monkeypatch):
    config = text_config(tmp_path, training={"max_steps": 1})

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tailora.artifacts.os, "fsync", full)
    with pytest.raises(StorageError, match=r"is full; free some space and run the same command again") as caught:
        execute(config)
    assert caught.value.exit_code == 1
    assert not list(run_folder(config).iterdir())
    monkeypatch.undo()
    # The libraries' own errors carry the system's words only.
    wrapped = RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/1")
    assert isinstance(explain(wrapped), StorageError)
    assert explain(ValueError("no")) is None
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"is in the way|cannot be used|Not a directory"):
        execute(config.model_copy(update={"output": str(tmp_path / "file" / "runs")}))

    def closed(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "runs"))

    monkeypatch.setattr(Path, "mkdir", closed)
    with pytest.raises(UserError, match="cannot be used .Read-only file system.; choose another folder") as caught:
        execute(config.model_copy(update={"seed": 5}))
    assert caught.value.exit_code == 2


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was stopped in training, and what its files hold."""
    config = text_config(tmp_path_factory.mktemp("cut"), training={"max_steps": 12}, recipe="spectral")

    def stop(stage, done, total):
        if (stage, done) == ("train", 5):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        execute(config, progress=stop)
    folder = run_folder(config)
    return config, folder, {name: load(folder, name) for name in ("status", "config", "plan")}


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("config", lambda c: c["training"].update(learning_rate=1.0), "training.learning_rate=1.0 there and 0.01 here"),
        ("config", lambda c: c.update(surprise=1), "'surprise' is only there"),
        ("config", lambda c: c.pop("seed"), "'seed' is only here"),
        ("status", lambda s: s.update(hash="f" * 64), "belongs to a run with hash 'ffffffffffff'"),
        ("plan", lambda p: p["targets"][0].update(rank=9), "was changed after it was made"),
        ("plan", lambda p: p["provenance"].update(seed=3) or p.update(hash=rehash(p)), "was made for seed=3"),
        ("plan", lambda p: p.pop("targets"), "is damaged"),
    ],
)  # fmt: skip
def test_changed_files_are_refused_before_anything_is_computed(interrupted, name, change, words):
    config, folder, contents = interrupted
    content = json.loads(json.dumps(contents[name]))
    change(content)
    place = folder / f"{name}.json"
    before = place.read_bytes()
    try:
        place.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(UserError) as caught:
            execute(config, progress=lambda *_: pytest.fail("it began to work"))
    finally:
        place.write_bytes(before)
    assert words in str(caught.value)
    assert "start the run again" in str(caught.value)
    assert load(folder, "status")["status"] == "interrupted"


def rehash(content):
    with pytest.raises(UserError, match="content ") as caught:
        Plan.from_dict(content)
    assert caught.value.exit_code == 2
    from tailora.artifacts import content_hash

    return content_hash({key: value for key, value in content.items() if key not in ("versions", "hash")})


def test_what_a_killed_process_left_half_written_is_removed(interrupted):
    config, folder, _ = interrupted
    (folder / ".adapter-x1").mkdir()
    (folder / ".adapter-x1" / "part").write_text("")
    (folder / ".plan.json.ab.tmp").write_text("{")
    execute(config)
    assert not list(folder.glob(".*"))
    assert load(folder, "timings")["resumed_from_step"] == 5


KILLED = """
import json, os, signal, sys, threading
from tailora.config import make_config
from tailora.runs import execute
config = make_config(json.load(open(sys.argv[1])))
timer = []
def begin(*step):
    if step[0] != "load" and not timer:
        timer.append(threading.Timer(float(sys.argv[2]), os.kill, (os.getpid(), signal.SIGKILL)))
        timer[0].daemon = True
        timer[0].start()
execute(config, progress=begin)
"""


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(stories260k, data_root, tmp_path):
    values = {
        "model": str(stories260k),
        "task": {"kind": "causal-lm", "train": str(data_root / "text" / "tinyshakespeare.txt"), "max_length": 64,
                 "train_examples": 400, "eval_examples": 32},
        "recipe": "spectral", "budget": "r=2", "calibration": {"examples": 16},
        "training": {"learning_rate": 1e-2, "max_steps": 60, "per_device_train_batch_size": 8, "save_steps": 2,
                     "logging_steps": 2, "eval_steps": 10},
    }  # fmt: skip
    config = tailora.config.make_config({**values, "output": str(tmp_path / "killed")})
    whole = execute(tailora.config.make_config({**values, "output": str(tmp_path / "whole")}))
    seconds = load(whole, "timings")["train_s"]
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps(config.to_dict()), encoding="utf-8")
    draw, kills, folder = random.Random(0), 0, run_folder(config)
    for _ in range(10):
        # Short enough that ten of them do not outlast the training, long enough to reach a checkpoint now and then.
        after = draw.uniform(0.05, seconds / 8)
        child = subprocess.run(
            [sys.executable, "-c", KILLED, str(stored), str(after)], capture_output=True, check=False
        )
        kills += child.returncode == -signal.SIGKILL
        for path in folder.glob("*.json"):
            json.loads(path.read_text(encoding="utf-8"))
        if child.returncode == 0:
            break
    assert kills >= 5
    execute(config)
    assert is_done(config)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}
    assert load(folder, "scores")["loss"] == pytest.approx(load(whole, "scores")["loss"], rel=1e-5)
    rows, expected = (read_rows(place / "history.jsonl") for place in (folder, whole))
    assert [(r["step"], r["split"]) for r in rows] == [(r["step"], r["split"]) for r in expected]
    assert (folder / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()


TORCHRUN = "torch.distributed.run --standalone --nproc_per_node 2"
# Without --multi_gpu, and with --cpu, it starts one process only.
ACCELERATE = (
    "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port 0"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "launcher", "recipe"),
    [
        (text_config, ACCELERATE, "spectral"),
        (review_config, TORCHRUN, "spectral"),
        (text_config, TORCHRUN, "fish-lora"),
    ],
)
def test_two_processes_train_as_one(tmp_path, make, launcher, recipe):
    settings = {"max_steps": 12, "logging_steps": 1, "use_cpu": True, "eval_steps": 6}
    changes = {"recipe": recipe, "task": {"max_length": 16}}
    config = make(tmp_path, **changes, training={**settings, "per_device_train_batch_size": 4})
    # Every process draws its own drop-out, so losses can only agree without it.
    model = Path(config.model) / "config.json"
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model.write_text(json.dumps(json.loads(model.read_text(encoding="utf-8")) | without), encoding="utf-8")
    yaml = tmp_path / "run.yaml"
    yaml.write_text(json.dumps(config.to_dict()), encoding="utf-8")
    command = [sys.executable, "-m", *launcher.split()]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "tailora", "train", str(yaml), "--json"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["run"])
    assert run_folder(config) != folder, "two processes take twice the examples: that is another run"
    assert not list(folder.glob(".*"))
    one = execute(make(tmp_path, **changes, training={**settings, "per_device_train_batch_size": 8}))
    assert Plan.load(folder / "plan.json").ranks == Plan.load(one / "plan.json").ranks
    if recipe.startswith("fish-"):
        assert FisherMask.load(folder / "mask").hash == FisherMask.load(one / "mask").hash
    rows, expected = (read_rows(place / "history.jsonl") for place in (folder, one))
    assert [(r["step"], r["split"]) for r in rows] == [(r["step"], r["split"]) for r in expected]
    for mine, theirs in zip(rows, expected, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3), mine
