"""The most memory that was taken at once, by one run of a process that may do many."""

from __future__ import annotations

import contextlib
from pathlib import Path

_PROCESS = Path("/proc/self")
_RESET = "5"
"""What makes Linux (from 4.0 on) forget a process's peak (proc(5), clear_refs)."""


def forget() -> None:
    """Begin anew: what was taken before this call counts no longer, what is still held does.

    Where the system cannot forget (macOS, or a container that forbids it) the peak stays that of the whole process.
    """
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text(_RESET)


def peak() -> float:
    """Return the most memory since ``forget``, in MiB: of the GPU where there is one, of this process otherwise."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = (_PROCESS / "status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    import resource
    import sys

    # In bytes on macOS, in KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
