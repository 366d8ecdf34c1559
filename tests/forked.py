"""Processes with torch, transformers and peft imported, where a test needs a second process and not a start."""

from __future__ import annotations

import multiprocessing
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Nothing of Tailora: what a process imports of it is a part of what is tested.
_PRELOADED = [
    "peft",
    "transformers.trainer",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
]


def _prepared() -> Any:
    # Forked from a process that has only imported: this one may have threads, which a fork would lose.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start_two(work: Callable[..., Any]) -> None:
    """Call ``work(rank)`` in two processes; the first error is raised here."""
    from torch.multiprocessing.spawn import start_processes

    _prepared()
    start_processes(work, nprocs=2, start_method="forkserver")


def execute(code: str, *arguments: str | Path) -> int:
    """Execute a program in a process of its own and return its exit status, negative for a signal."""
    process = _prepared().Process(target=_execute, args=(code, [str(argument) for argument in arguments]))
    process.start()
    process.join()
    return process.exitcode


def _execute(code: str, arguments: list[str]) -> None:
    assert not any(name.partition(".")[0] == "tailora" for name in sys.modules), "this process is not a fresh one"
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
