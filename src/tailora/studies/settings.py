"""What executors are told besides the runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tailora.studies.messages import Message


@dataclass(frozen=True)
class Settings:
    """Where and how runs are executed.

    Attributes:
        workers: Worker processes; 0 for this process.
        ray: Address of a Ray cluster, ``local`` for one on this machine, ``None`` without Ray.
        cpus: CPU cores that one run needs, for Ray.
        gpus: GPUs that one run needs, for Ray; a fraction where runs share one.
        logs: Folder for what worker processes print; nowhere when left out.
        watch: Takes messages at once, from an executor that works in the very thread that iterates over it and so
            cannot yield them in time; it yields only ``Ended`` then.
    """

    workers: int = 0
    ray: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    logs: Path | None = None
    watch: Callable[[Message], None] | None = field(default=None, compare=False, repr=False)
