"""``tailora profile`` under a launcher: every process measures its share, the first one saves and prints."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from forked import free_port, start_two
from tailora.profiles import Profile

RANDOM_HALVES = "intrinsic_dimension"


def work(rank, port, lines, out):
    """Run command lines as one of two processes; what each prints goes to a file."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    from tailora.cli import main

    for number, line in enumerate(lines):
        with open(f"{out}/{rank}.{number}.out", "w") as stdout, open(f"{out}/{rank}.{number}.err", "w") as stderr:
            sys.stdout, sys.stderr = stdout, stderr
            try:
                main(line)
            except SystemExit as end:
                stderr.write(f"status {end.code or 0}\n")
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


def in_two(lines, out):
    """Return what two processes print on stdout and stderr: ``[line][process]``."""
    start_two(functools.partial(work, port=free_port(), lines=lines, out=str(out)))
    said = [
        [[(out / f"{r}.{n}.{kind}").read_text() for kind in ("out", "err")] for r in (0, 1)] for n in range(len(lines))
    ]
    for path in out.glob("?.?.*"):
        path.unlink()
    return said


def same(one, two):
    assert one.targets == two.targets
    assert set(one.signals) == set(two.signals)
    for name, values in one.signals.items():
        mine, theirs = values, two.signals[name]
        if name == RANDOM_HALVES:
            mine, theirs = mine[..., 0], theirs[..., 0]  # the rest is of random halves
        np.testing.assert_allclose(theirs, mine, rtol=1e-6, atol=1e-6 * np.abs(mine).max(), err_msg=name)
    varying = ("seconds", "calibration_curve", "mean_loss")
    kept = {key: value for key, value in one.meta.items() if key not in varying}
    assert {key: value for key, value in two.meta.items() if key not in varying} == kept
    assert two.meta["mean_loss"] == pytest.approx(one.meta["mean_loss"], rel=1e-12)


def test_what_a_user_types(command, home, tmp_path):
    words = ["profile", str(home / "llama"), "--data", str(home / "counting.txt"), "--examples", "52"]
    words += ["--max-length", "9", "--signals", "all", "--keep-sums", "--json", "-o"]
    launcher = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "--", "tailora", *words, str(tmp_path / "two")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)  # once
    assert done.stderr.count("profiling ") == 1
    assert done.stderr.count("tailora: intrinsic") <= 1
    assert command(" ".join(words), str(tmp_path / "one")).status == 0
    one, two = (Profile.load(tmp_path / name) for name in ("one", "two"))
    assert said["hash"] == two.hash
    assert one.meta["examples"] == 52
    same(one, two)
    assert not list(tmp_path.glob("*.tmp"))
    assert (tmp_path / "two" / "sums.safetensors").is_file()


def test_few_batches_a_file_each_and_the_weights_alone(command, home, tmp_path):
    words = ["profile", str(home / "llama"), "--data", str(home / "counting.txt"), "--max-length", "9"]
    few = [*words, "--examples", "3"]
    stable = [*words, "--examples", "48", "--until", "0.5"]
    weights = ["profile", str(home / "llama"), "--signals", "stable_rank"]
    newton = [*words, "--signals", "fisher,newton_spectrum"]
    resume = ["--resume", str(tmp_path / "unfinished")]
    names = ("few", "stable", "weights", "newton")
    lines = [[*few, *resume], [*stable, *resume], weights, newton]
    said = in_two([[*line, "-o", str(tmp_path / name)] for line, name in zip(lines, names, strict=True)], tmp_path)
    for (out, err), other in said[:3]:
        assert out.startswith(str(tmp_path)), err
        assert "status 0\n" in err
        assert other == ["", "status 0\n"]
    for part in said[3]:
        assert "signal 'newton_spectrum' is solved for in one process and this is one of 2; measure it in a" in part[1]
        assert part[1].endswith("status 2\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[:3])
    assert command(" ".join(few), "-o", str(tmp_path / "one")).status == 0
    same(Profile.load(tmp_path / "one"), Profile.load(tmp_path / "few"))
    assert command(" ".join(weights), "-o", str(tmp_path / "w")).status == 0
    same(Profile.load(tmp_path / "w"), Profile.load(tmp_path / "weights"))
    stopped = Profile.load(tmp_path / "stable")
    assert 0 < stopped.meta["batches"] < 6


STOPS = """
import os, signal, sys, time
from tailora.signals import passes
from tailora.cli import main

plain, stop = passes.Pass.take, sys.argv.pop(1) == "stop"

def take(self, batch):
    plain(self, batch)
    if stop and os.environ["RANK"] == "0" and self.batches == 2:
        time.sleep(1)  # the other one is done with its share long before, and waits
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1)

passes.Pass.take = take
main()
"""


@pytest.mark.slow
def test_a_launcher_that_is_stopped_keeps_the_sums_of_every_process(command, home, tmp_path):
    (tmp_path / "stops.py").write_text(STOPS)
    words = ["profile", str(home / "llama"), "--data", str(home / "counting.txt"), "--examples", "48"]
    words += ["--max-length", "9", "-o"]
    launcher = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2"]
    script, file = str(tmp_path / "stops.py"), tmp_path / "unfinished"

    def run(how):
        more = [str(tmp_path / "two"), "--resume", str(file)]
        return subprocess.run([*launcher, script, how, *words, *more], capture_output=True, text=True, check=False)

    done = run("stop")
    assert done.returncode != 0
    for rank, seen in enumerate((16, 24)):
        name = f"{file}.{rank}-of-2"
        sentence = f"stopped by SIGTERM after {seen} of 24 examples; the sums are kept in {name!r} and the same command"
        assert f"tailora: {sentence} goes on from there\n" in done.stderr
        assert Path(name).is_file()
    assert not (tmp_path / "two").exists()
    done = run("go on")
    assert done.returncode == 0, done.stderr
    assert command(" ".join(words), str(tmp_path / "one")).status == 0
    same(Profile.load(tmp_path / "one"), Profile.load(tmp_path / "two"))
    assert not list(tmp_path.glob("unfinished*"))
