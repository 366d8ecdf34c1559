"""Reach a Ray cluster or start one on this machine; everything quiet, and put back afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tailora.errors import TailoraError, UserError
from tailora.studies.settings import Settings

LOCAL = "local"
"""What stands for a cluster on this machine alone, which ends with the study."""

_ANSWER = 5.0
# Ray's sockets lie below its folder, and a socket's path has at most 107 bytes, of which Ray's own part takes 64.
_LONGEST_FOLDER = 24
_OBJECT_STORE = 100 * 2**20
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Processes that are started before they are wanted have not the environment of the runs, and are never used.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
}


class ClusterError(TailoraError):
    """Ray itself cannot be started on this machine."""


def import_ray() -> Any:
    """Return the module ``ray``.

    Raises:
        UserError: It is not installed.
    """
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed; install it with: pip install 'tailora[ray]'") from None
    return ray


@contextlib.contextmanager
def connected(settings: Settings) -> Iterator[Any]:
    """Connect to the cluster, or start one on this machine, and leave it afterwards.

    A process that is connected already stays connected.

    Args:
        settings: ``ray`` is ``local``, ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``.

    Yields:
        The module ``ray``.

    Raises:
        UserError: Ray is not installed, there is no cluster at the address, or none of its nodes could do a run.
        ClusterError: Ray cannot be started here.
    """
    ray, address = import_ray(), settings.ray or LOCAL
    if ray.is_initialized():
        _check_room(ray, settings)
        yield ray
        return
    with contextlib.ExitStack() as stack:
        if address != LOCAL:
            _check_address(address)
            options: dict[str, Any] = {}
        else:
            # Runs go through the disk, so the store of objects needs next to nothing; and a run whose memory never
            # suffices must end, where Ray would repeat it for ever.
            options = {
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE,
                "_temp_dir": stack.enter_context(_short_folder()),
                "_system_config": {"task_oom_retries": 2},
            }
        stack.enter_context(_reports_dropped(ray))
        stack.callback(ray.shutdown)
        with _kept_handlers(), _environment(_QUIET):
            try:
                ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
            except (OSError, RuntimeError, ValueError) as error:
                sentence = " ".join(str(error).split())[:200]
                if address == LOCAL:
                    raise ClusterError(
                        f"Ray could not be started on this machine ({sentence}); use --workers instead"
                    ) from error
                raise UserError(f"--ray {address!r}: no Ray cluster can be used there ({sentence})") from error
        _check_room(ray, settings)
        yield ray


def _check_address(address: str) -> None:
    """Ask for a connection first: Ray itself tries for minutes, and then ends the process."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--ray {address!r} is no address; use local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"--ray {address!r}: nothing answers there ({reason}); start Ray there with 'ray start --head', or use "
            "--ray local"
        ) from None


def _check_room(ray: Any, settings: Settings) -> None:
    """Refuse runs that fit on no node; a cluster that can grow is waited for."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs = {"CPU": settings.cpus, "GPU": settings.gpus}
    if any(all(node.get(kind, 0.0) >= need for kind, need in needs.items()) for node in nodes):
        return
    largest = " and ".join(f"{max((n.get(kind, 0.0) for n in nodes), default=0):g} {kind}" for kind in needs)
    sentence = f"a run needs {settings.cpus:g} CPU and {settings.gpus:g} GPU, and the largest node has {largest}"
    if settings.ray == LOCAL:
        raise UserError(f"resources: {sentence}; lower resources.cpus or resources.gpus in the study")
    print(f"tailora: {sentence}; waiting until a node is added", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _reports_dropped(ray: Any) -> Iterator[None]:
    """Keep Ray's reports of dead nodes off stdout, which is for data; ``log_to_driver`` does not cover them."""
    module, name = ray._private.worker, "print_to_stdstream"
    before = getattr(module, name, None)
    if before is None:
        yield
        return
    setattr(module, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextlib.contextmanager
def _short_folder() -> Iterator[str]:
    """Give Ray a folder of its own, so that nothing of it stays behind."""
    usual = tempfile.gettempdir()
    parent = usual if len(usual) <= _LONGEST_FOLDER else "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="tailora-", dir=parent))
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _kept_handlers() -> Iterator[None]:
    """Put the signal handlers back that Ray replaces: SIGTERM has to end a study as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for what is started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
