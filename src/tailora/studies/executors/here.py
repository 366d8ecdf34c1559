"""Runs one after another in this process, which loads what they share once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tailora.config import RunConfig
from tailora.studies.attempt import perform
from tailora.studies.messages import Ended, Message
from tailora.studies.settings import Settings
from tailora.surroundings import transformers_hushed
from tailora.tasks.sharing import Shared


def execute(jobs: Sequence[RunConfig], settings: Settings, *, shared: Shared | None = None) -> Iterator[Message]:
    """Do every run once.

    Args:
        jobs: The runs.
        settings: ``watch`` is told about each run while it lasts.
        shared: What runs share; its own when left out.

    Yields:
        Messages; without ``settings.watch`` those of a run come together when it has ended.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the run at hand stopped with a checkpoint.
    """
    shared = shared or Shared()
    for config in jobs:
        kept: list[Message] = []

        def send(message: Message, kept: list[Message] = kept) -> None:
            if settings.watch and not isinstance(message, Ended):
                settings.watch(message)
            else:
                kept.append(message)

        with transformers_hushed():
            perform(config, send, shared=shared, worker="this process")
        yield from kept
