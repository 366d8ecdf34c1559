"""What an executor tells the study about its runs; every message pickles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Outcome:
    """How one attempt at a run ended.

    Attributes:
        hash: Hash of the run's configuration.
        status: ``done``; ``failed``; or ``busy``, where another process is at work on the run, so that nothing was
            done and the study looks again later.
        error: One sentence about what went wrong; empty where nothing did.
        seconds: Wall time of the attempt.
        folder: The run's folder.
        retry: Whether a second attempt may end otherwise; not where the input is at fault.
        worked: Whether this attempt did the work; not where the run was found done.
    """

    hash: str
    status: Literal["done", "failed", "busy"]
    error: str = ""
    seconds: float = 0.0
    folder: str = ""
    retry: bool = True
    worked: bool = True


@dataclass(frozen=True)
class Started:
    """Work on a run has begun: its folder is held, and it was not done before.

    Attributes:
        hash: Hash of the run's configuration.
        worker: Who works on it, for people, such as ``worker 2`` or a node's name.
    """

    hash: str
    worker: str = ""


@dataclass(frozen=True)
class Advanced:
    """How far a run is.

    Attributes:
        hash: Hash of the run's configuration.
        stage: ``load``, ``profile``, ``train`` or ``evaluate``.
        done: Steps done of this stage.
        total: Steps in all; 0 where unknown.
    """

    hash: str
    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Ended:
    """An attempt has ended; the last message about it.

    Attributes:
        outcome: How.
    """

    outcome: Outcome


Message = Started | Advanced | Ended
