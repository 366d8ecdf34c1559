"""Runs on Ray: real clusters of this machine, with a node, a driver or a terminal taken away in the middle."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from study_cases import (
    ENVIRONMENT,
    amid_training,
    check_events,
    children,
    command,
    events,
    hash_of,
    read_json_files,
    real_study,
    run,
    same_results,
    wait_for,
)

from tailora.config import make_config
from tailora.errors import UserError
from tailora.locking import run_lock
from tailora.run_folders import is_done, run_folder
from tailora.studies.attempt import attempt
from tailora.studies.executors import ray as ray_executor
from tailora.studies.executors import ray_cluster
from tailora.studies.executors.ray import execute
from tailora.studies.executors.ray_task import Board, Order, accept, wait_for_lock
from tailora.studies.messages import Advanced, Ended, Outcome, Started
from tailora.studies.settings import Settings
from tiny_runs import review_config

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra 'ray' is not installed")

LONG = {"max_steps": 60, "save_steps": 5, "eval_steps": 60, "logging_steps": 20}


def scores(config):
    return json.loads((run_folder(config) / "scores.json").read_text())


def order_of(config, **changes):
    mark = Path(config.output).resolve() / ".mark"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    paths = ray_executor._paths(config)
    values = ray_executor._absolute(config, paths)
    facts = {"values": values, "hash": config.hash, "paths": tuple(paths.values()), "mark": str(mark)}
    return Order(**(facts | changes))


def ray_processes(mark):
    """Ids of living processes with a folder in their command or, as Ray's workers, in their environment."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                if mark.encode() in (process / name).read_bytes():
                    found.add(int(process.name))
    return found - {os.getpid()}


def gone(mark, seconds=20.0):
    """Wait until no process mentions a folder any more."""
    deadline = time.monotonic() + seconds
    while ray_processes(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not ray_processes(mark)


@pytest.fixture
def short(monkeypatch):
    """A folder for Ray, whose sockets need a short path."""
    folder = tempfile.mkdtemp(prefix="tlr-", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    # Only there: torch keeps the usual folder for good once it has asked for it.
    monkeypatch.setattr(ray_cluster, "tempfile", SimpleNamespace(gettempdir=lambda: folder, mkdtemp=tempfile.mkdtemp))
    (Path(folder) / "ray").mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def two_nodes(folder):
    import ray
    from ray.cluster_utils import Cluster

    options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=options | {"include_dashboard": False})
    try:
        yield cluster, cluster.add_node(**options)
    finally:
        ray.shutdown()
        cluster.shutdown()
        assert gone(folder), "Ray left processes behind"


def own_folder():
    """The folder of the cluster that this process has started."""
    worker = importlib.import_module("ray._private.worker")
    return Path(worker.global_worker.node.get_temp_dir_path())


@needs_ray
@pytest.mark.slow
def test_a_node_that_dies_costs_nothing(tmp_path, short, capfd):
    """The runs of the dead node go on elsewhere, each ends once, and the scores are those of one process."""
    jobs = [review_config(tmp_path / "ray", seed=seed, training=LONG) for seed in range(4)]
    twins = [review_config(tmp_path / "here", seed=seed, training=LONG) for seed in range(4)]
    messages, killed = [], []
    capfd.readouterr()
    with two_nodes(short) as (cluster, second):
        raylet = next(process.process.pid for process in second.all_processes["raylet"])
        for message in execute(jobs, Settings(ray=cluster.address)):
            messages.append(message)
            if killed or not (isinstance(message, Advanced) and message.stage == "train" and message.done >= 10):
                continue
            worker = next(m.worker for m in messages if isinstance(m, Started) and m.hash == message.hash)
            if int(worker.rpartition(":")[2]) in children(raylet):
                killed.append(message.hash)
                assert not is_done(next(job for job in jobs if job.hash == message.hash))
                cluster.remove_node(second, allow_graceful=False)
    assert capfd.readouterr().out == ""
    assert killed, "no run came as far as training on the second node"
    ends = [m.outcome for m in messages if isinstance(m, Ended)]
    assert sorted(end.hash for end in ends) == sorted(job.hash for job in jobs)
    assert {end.status for end in ends} == {"done"}, ends
    starts = Counter(m.hash for m in messages if isinstance(m, Started))
    assert starts[killed[0]] == 2, starts
    assert set(starts) == {job.hash for job in jobs}
    moved = next(job for job in jobs if job.hash == killed[0])
    assert json.loads((run_folder(moved) / "timings.json").read_text())["resumed_from_step"] >= 5
    for job, twin in zip(jobs, twins, strict=True):
        assert attempt(twin).status == "done"
        assert scores(job) == scores(twin)
    assert not list((tmp_path / "ray" / "runs").glob(".study-*"))


@needs_ray
@pytest.mark.slow
def test_a_node_that_dies_amid_24_runs_changes_nothing(stories260k, data_root, tmp_path, short):
    """The command ends as if nothing had happened: each run done once, and what it leaves that of one process."""
    path, out = real_study(tmp_path / "ray", stories260k, data_root)
    with two_nodes(short) as (cluster, second):
        raylet = next(process.process.pid for process in second.all_processes["raylet"])
        ray = command(path, "--json", "--ray", cluster.address)
        with subprocess.Popen(ray, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True) as child:
            finished = lambda: {row["hash"] for row in events(out) if row["event"] == "done"}  # noqa: E731
            wait_for(lambda: len(finished()) >= 6, child, seconds=400)
            wait_for(lambda: amid_training(out, children(raylet)), child)
            cut_off = amid_training(out, children(raylet)).pop()
            # Alone a worker may outlive its raylet and end its run; a machine that dies takes all with it.
            for pid in (raylet, *children(raylet)):
                os.kill(pid, signal.SIGKILL)
            assert not (cut_off / "scores.json").exists(), "the node died too late"
            before = finished()
            read_json_files(out)
            printed, error = child.communicate(timeout=600)
    assert child.returncode == 0, error
    told = json.loads(printed)
    assert (told["done"], told["new"], told["failed"]) == (24, 24, [])
    rows = check_events(out, 24)
    starts = Counter(row["hash"] for row in rows if row["event"] == "started")
    assert len(before) < 24
    assert {hash: count for hash, count in starts.items() if count > 1} == {hash_of(cut_off): 2}, starts
    assert not [row for row in rows if row["event"] == "failed"]
    assert json.loads((cut_off / "timings.json").read_text())["resumed_from_step"] >= 3
    assert not list((out / "runs").glob(".study-*"))
    read_json_files(out)
    whole, undisturbed = real_study(tmp_path / "whole", stories260k, data_root)
    assert run(whole).returncode == 0
    same_results(out, undisturbed, 24)


@needs_ray
def test_a_cluster_of_its_own_ends_with_the_study(tmp_path, short, capfd):
    """Quiet, in one worker process where a run takes all CPUs, and with the signal handlers as before."""
    jobs = [review_config(tmp_path, seed=seed) for seed in range(2)]
    broken = review_config(tmp_path / "broken", placement="layers:90")
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    capfd.readouterr()
    messages, folder = [], Path()
    for message in execute([*jobs, broken], Settings(ray="local", cpus=os.cpu_count() or 1)):
        folder = own_folder()
        messages.append(message)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""
    ends = {m.outcome.hash: m.outcome for m in messages if isinstance(m, Ended)}
    assert [ends[job.hash].status for job in jobs] == ["done", "done"]
    assert len({m.worker for m in messages if isinstance(m, Started)}) == 1, "no process was used again"
    assert ends[broken.hash].status == "failed"
    assert not ends[broken.hash].retry
    assert "layers:90" in ends[broken.hash].error
    assert not folder.exists()
    assert folder.parent == Path(short)
    assert gone(short)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


DRIVER = """
import sys
from pathlib import Path
from tiny_runs import review_config
from test_study_ray import LONG
from tailora.stopping import Interrupted, StopRequest
from tailora.studies.executors.ray import execute
from tailora.studies.settings import Settings
if __name__ == "__main__":
    jobs = [review_config(Path(sys.argv[1]), training=LONG | {"max_steps": 400})]
    try:
        with StopRequest().listening():
            for message in execute(jobs, Settings(ray="local")):
                print(message, flush=True)
    except Interrupted as stopped:
        sys.exit(stopped.exit_code)
"""


@needs_ray
@pytest.mark.slow
def test_a_driver_that_is_stopped_or_killed_leaves_runs_that_go_on(tmp_path, short):
    """SIGTERM stops the runs with a checkpoint, SIGKILL ends Ray's processes as well; the next start continues."""
    here = Path(__file__).parent
    environment = os.environ | {"TMPDIR": short, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    job = review_config(tmp_path, training=LONG | {"max_steps": 400})

    def stop(number):
        """Start the driver and send it a signal once a run trains; return how it ended."""
        command = [sys.executable, "-c", DRIVER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as driver:
            assert driver.stdout is not None
            for line in driver.stdout:
                if line.startswith("Advanced") and "'train'" in line and int(line.split("done=")[1].split(",")[0]) > 20:
                    break
            driver.send_signal(number)
            driver.communicate(timeout=90)
            return driver.returncode

    assert stop(signal.SIGTERM) == 143
    assert gone(short)
    assert not list(Path(short).glob("tailora-*"))
    assert json.loads((run_folder(job) / "status.json").read_text())["status"] == "interrupted"
    assert stop(signal.SIGKILL) == -signal.SIGKILL
    assert gone(short)
    assert not is_done(job)
    assert attempt(job).status == "done"
    assert json.loads((run_folder(job) / "timings.json").read_text())["resumed_from_step"] >= 20


def test_a_node_refuses_what_it_does_not_share(tmp_path):
    """Each reason is one sentence; a node in order takes the run, whatever folder its process is in."""
    config = review_config(tmp_path)
    assert accept(order_of(config)).hash == config.hash
    assert accept(order_of(config)).output == str(tmp_path / "runs")
    cases = {
        "install the same version": {"version": "0.0.0"},
        "does not see the study's folder": {"mark": str(tmp_path / "elsewhere" / "mark")},
        "has no '/nowhere/model'": {"paths": ("/nowhere/model",)},
        "are not the same there": {"hash": "0" * 64},
    }
    for words, change in cases.items():
        with pytest.raises(UserError, match=words) as raised:
            accept(order_of(config, **change), wait=0)
        assert "\n" not in str(raised.value)


def test_relative_paths_are_sent_as_absolute_ones(tmp_path, monkeypatch):
    """A worker's folder is another one; a name on the hub stays as it is."""
    config = review_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    values = config.to_dict() | {"model": "bert", "output": "runs"}
    relative = make_config(values)
    order = order_of(relative)
    assert order.values["model"] == str(tmp_path / "bert")
    assert order.values["output"] == str(tmp_path / "runs")
    monkeypatch.chdir("/")
    assert accept(order).hash == relative.hash
    hub = make_config(values | {"model": "some/model", "recipe": "lora"})
    assert ("model",) not in ray_executor._paths(hub)


def test_the_lock_of_a_dying_process_is_waited_for(tmp_path):
    """Until it is free, or until the wait is over."""
    config = review_config(tmp_path)
    wait_for_lock(config, wait=60)  # without a folder there is nothing to wait for
    folder = run_folder(config)
    folder.mkdir(parents=True)
    held, free = threading.Event(), threading.Event()

    def hold():
        with run_lock(folder):
            held.set()
            free.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    start = time.monotonic()
    wait_for_lock(config, wait=0.5)
    assert time.monotonic() - start >= 0.5
    threading.Timer(0.5, free.set).start()
    wait_for_lock(config, wait=20)
    assert free.is_set()
    assert time.monotonic() - start < 15
    holder.join()


def test_the_board_keeps_every_start_and_the_last_progress():
    board = Board()
    for message in (
        Started("a", "one"),
        Advanced("a", "train", 1, 9),
        Started("b", "two"),
        Advanced("a", "train", 2, 9),
        Started("a", "three"),
    ):
        board.put(message)
    board.put(Ended(Outcome("a", "done")))
    assert board.take() == [
        Started("a", "one"),
        Started("b", "two"),
        Started("a", "three"),
        Advanced("a", "train", 2, 9),
    ]
    assert board.take() == []


def test_addresses_that_cannot_be_used(tmp_path):
    """One sentence each, at once, and nothing is written."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    for address, words in {
        f"127.0.0.1:{port}": "nothing answers there",
        f"ray://127.0.0.1:{port}": "nothing answers there",
        "here": "is no address; use local, auto",
        "host:99999": "is no address",
    }.items():
        with pytest.raises(UserError, match=words) as raised:
            list(execute([review_config(tmp_path)], Settings(ray=address)))
        assert repr(address) in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "runs").exists()


def test_without_ray_the_way_to_install_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'tailora\[ray\]'"):
        list(execute([review_config(tmp_path)], Settings(ray="local")))


def test_nothing_to_do_needs_no_cluster(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(execute([], Settings(ray="local"))) == []


class Nodes:
    """What ``ray.nodes()`` says."""

    def __init__(self, *nodes):
        self.found = [{"Alive": alive, "Resources": resources} for alive, resources in nodes]

    def nodes(self):
        return self.found


def test_runs_that_fit_on_no_node(capsys):
    """Here that is an error; a cluster may grow, so there it is said and waited for."""
    nodes = Nodes((True, {"CPU": 4.0}), (False, {"CPU": 64.0, "GPU": 8.0}))
    ray_cluster._check_room(nodes, Settings(ray="local", cpus=4))
    with pytest.raises(UserError, match=r"needs 1 CPU and 1 GPU, and the largest node has 4 CPU and 0 GPU"):
        ray_cluster._check_room(nodes, Settings(ray="local", gpus=1))
    assert capsys.readouterr().err == ""
    ray_cluster._check_room(nodes, Settings(ray="10.0.0.1:6379", cpus=8))
    assert "waiting until a node is added" in capsys.readouterr().err


def test_worker_processes_get_the_threads_that_they_asked_for(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    variables = ray_executor._environment(Settings(cpus=3.5))
    assert variables["OMP_NUM_THREADS"] == "3"
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["CUDA_VISIBLE_DEVICES"] == ""
    assert ray_executor._environment(Settings(cpus=0.5, gpus=1))["OMP_NUM_THREADS"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in ray_executor._environment(Settings(gpus=0.5))
