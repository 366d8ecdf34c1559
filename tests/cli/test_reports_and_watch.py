"""``tailora report`` with its options, and ``tailora watch`` on a run that is going on."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import numpy as np
import pytest

from tailora.cli import main, watching
from tailora.cli.watching import ending, read_state, sparkline, tell
from tailora.locking import LOCK, BusyError, run_lock
from tailora.report.liveness import worker


@pytest.fixture
def dead_folder(tmp_path):
    """A run that was killed: no status, and nobody holds its lock."""
    folder = tmp_path / "lora-s0-0123456789ab"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"recipe": "lora", "training": {"max_steps": 40}}))
    return folder


@pytest.fixture
def run_folder(dead_folder):
    """A run that this process works on."""
    with run_lock(dead_folder):
        yield dead_folder


def add(folder, *rows):
    with (folder / "history.jsonl").open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def finish(folder, status="done", error=None):
    (folder / "scores.json").write_text(json.dumps({"primary": "accuracy", "accuracy": 0.75}))
    (folder / "status.json").write_text(json.dumps({"status": status, "error": error}))


def watch(*arguments):
    try:
        main(["watch", *map(str, arguments)])
    except SystemExit as end:
        return end.code or 0
    return 0


def test_watch_prints_new_lines_until_the_run_ends(run_folder, capsys, monkeypatch):
    add(run_folder, {"step": 10, "split": "train", "loss": 0.9, "learning_rate": 0.001})
    # What happens between two looks: nothing, another row, the end.
    between = iter(
        [lambda: None, lambda: add(run_folder, {"step": 20, "split": "train", "loss": 0.5}), lambda: finish(run_folder)]
    )
    monkeypatch.setattr(watching.time, "sleep", lambda seconds: next(between)())
    assert watch(run_folder, "--every", "0.1") == 0
    assert capsys.readouterr().out.splitlines() == [
        "lora-s0-0123456789ab: running",
        "step 10/40 train loss 0.9 learning_rate 0.001",
        "step 20/40 train loss 0.5",
        "lora-s0-0123456789ab: done: accuracy 0.7500",
    ]


def test_watch_once_and_failed_runs(run_folder, capsys):
    assert watch(run_folder, "--once") == 0
    assert capsys.readouterr().out == "lora-s0-0123456789ab: running\n"
    finish(run_folder, "failed", "out of memory")
    assert watch(run_folder) == 1
    assert capsys.readouterr().out.endswith(": failed: out of memory\n")
    finish(run_folder, "interrupted")
    assert watch(run_folder) == 0


def test_half_written_files_are_read_as_far_as_they_go(run_folder):
    (run_folder / "history.jsonl").write_text('{"step": 1, "loss": 2.0}\n[1]\n{"step": 2, "lo')
    (run_folder / "status.json").write_text('{"sta')
    state = read_state(run_folder)
    assert (state["status"], state["steps"]) == ("running", 40)
    assert state["rows"] == [{"step": 1, "loss": 2.0}]
    assert tell(state["rows"][0]) == "step 1  loss 2"
    assert ending(state) == "lora-s0-0123456789ab: running"


def test_a_killed_run_is_stopped_and_the_watch_ends(dead_folder, capsys):
    add(dead_folder, {"step": 10, "split": "train", "loss": 0.9})
    assert watch(dead_folder) == 1
    assert capsys.readouterr().out.splitlines() == [
        "lora-s0-0123456789ab: stopped",
        "step 10/40 train loss 0.9",
        "lora-s0-0123456789ab: stopped: no process works on it; run the same command again to continue",
    ]
    finish(dead_folder)
    assert read_state(dead_folder)["status"] == "done"


def test_a_process_that_is_killed_while_watched(dead_folder):
    code = (
        "import sys, time; from pathlib import Path; from tailora.locking import run_lock\n"
        "with run_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(dead_folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert worker(dead_folder) == f"process {process.pid} on {socket.gethostname()}"
        assert read_state(dead_folder)["status"] == "running"
        process.kill()
        process.wait()
    # What a kill leaves behind is the file, not the lock.
    assert (dead_folder / LOCK).exists()
    assert worker(dead_folder) is None
    assert read_state(dead_folder)["status"] == "stopped"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"pid": "x"}', '{"pid": -1, "host": "HERE"}', '{"pid": 1, "host": "HERE"}']
)
def test_a_lock_file_that_nobody_holds(dead_folder, text):
    """Cut-off content and the number of a process that lives but never held the lock."""
    (dead_folder / LOCK).write_text(text.replace("HERE", socket.gethostname()))
    assert worker(dead_folder) is None


def test_another_machine_is_believed(dead_folder):
    (dead_folder / LOCK).write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    assert worker(dead_folder) == "process 1 on elsewhere"


def test_looking_does_not_take_the_lock(dead_folder):
    with run_lock(dead_folder):
        assert worker(dead_folder)
        with pytest.raises(BusyError), run_lock(dead_folder):
            pass
    with run_lock(dead_folder):
        pass


def test_what_is_no_run_gets_one_sentence(tmp_path, capsys):
    assert watch(tmp_path) == 2
    assert "holds no config.json" in capsys.readouterr().err


def test_sparklines():
    assert sparkline([3.0, 2.0, 1.0], 10) == "█▅▁" or sparkline([3.0, 2.0, 1.0], 10) == "█▄▁"
    assert sparkline([1.0] * 3, 10) == "▁▁▁"
    assert len(sparkline([float(k) for k in range(100)], 20)) == 20
    assert sparkline([1.0, float("nan"), float("inf"), 2.0], 10) == "▁??█"


def test_the_live_view_in_a_terminal(run_folder, monkeypatch):
    import io

    from rich.console import Console

    import tailora.cli.output as output

    stream = io.StringIO()
    monkeypatch.setattr(output, "out", lambda: Console(file=stream, force_terminal=True, width=80))
    add(run_folder, *({"step": k, "split": "train", "loss": 1 / (k + 1)} for k in range(0, 40, 10)))
    finish(run_folder)
    assert watch(run_folder) == 0
    assert "train █" in stream.getvalue()
    assert "step 30/40" in stream.getvalue()


def test_report_of_a_profile(tmp_path, capsys):
    from tailora.profiles import Profile
    from tailora.targets import Target

    targets = tuple(
        Target(name=f"layer.{depth}.query", role="attention.query", depth=depth, shape=(4, 4)) for depth in range(2)
    )
    Profile(targets, {"fisher": np.array([1.0, 300.0]), "odd": np.zeros(3)}).save(tmp_path)
    main_ok("report", tmp_path, "--figures", tmp_path / "f")
    shown = capsys.readouterr()
    assert "layer.1.query" in shown.out
    assert f"report: {tmp_path / 'report.html'}" in shown.out
    assert "odd (3) has no entry for each of the 2 targets and is not drawn." in shown.err
    assert (tmp_path / "signals.csv").is_file()
    assert list((tmp_path / "f").glob("*.png"))
    main_ok("report", tmp_path, "--json")
    values = json.loads(capsys.readouterr().out)["signals"]["fisher"]
    assert values == {"energy": False, "targets": {"layer.0.query": 1.0, "layer.1.query": 300.0}}
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path), "--baseline", "lora"])
    assert ended.value.code == 2
    assert "is a profile, which has no baseline" in capsys.readouterr().err


def test_report_of_a_profile_tells_the_intrinsic_dimension_as_json(tmp_path, capsys):
    from tailora.profiles import Profile
    from tailora.targets import Target

    targets = tuple(
        Target(name=f"layer.{depth}.query", role="attention.query", depth=depth, shape=(4, 4)) for depth in range(2)
    )
    signal = np.array([[[3.0, 2.9, 3.1], [5.0, 4.8, 5.1]], [[5.0, 4.8, 5.1], [4.0, 4.1, 3.8]]])
    Profile(targets, {"fisher": np.ones(2), "intrinsic_dimension": signal}).save(tmp_path)
    main_ok("report", tmp_path, "--json")
    shown = json.loads(capsys.readouterr().out)
    assert set(shown["signals"]) == {"fisher"}
    found = shown["intrinsic_dimension"]
    assert [(b["depth"], b["before"], b["after"], b["rank"]) for b in found["blocks"]] == [(0, 3, 5, 3), (1, 5, 4, 1)]
    assert found["replicates"] == 2
    low, high = found["blocks"][0]["after_interval"]
    assert low < 5 < high
    Profile(targets, {"fisher": np.ones(2)}).save(tmp_path)
    main_ok("report", tmp_path, "--json")
    assert "intrinsic_dimension" not in json.loads(capsys.readouterr().out)


def test_report_options(tmp_path, capsys, monkeypatch):
    import webbrowser

    sys_path_fixture(monkeypatch)
    from report_fixtures import write_run

    for recipe in ("lora", "spectral"):
        write_run(tmp_path / "runs", recipe, examples=20)
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(opened.append(address)) or True)
    page = tmp_path / "out" / "r.html"
    main_ok("report", tmp_path / "runs", "-o", page, "--figures", tmp_path / "f", "--open", "--baseline", "spectral")
    assert opened == [page.resolve().as_uri()]
    assert (page.parent / "comparison.tex").is_file()
    assert list((tmp_path / "f").glob("*.png"))
    text = capsys.readouterr().out
    assert "Paired difference to spectral" in text
    assert f"figures: {tmp_path / 'f'}" in " ".join(text.split())
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    main_ok("report", tmp_path / "runs", "--open", "--json")
    shown = capsys.readouterr()
    assert json.loads(shown.out)["rows"]
    assert "no browser could be started" in shown.err


def sys_path_fixture(monkeypatch):
    """Make the report's fixtures importable from this folder."""
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "report"))


def main_ok(*arguments):
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        assert not end.code
