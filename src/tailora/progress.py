"""Progress on stderr: a live bar in a terminal, one line per piece of work elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, steps done, steps in all)``; 0 steps in all means unknown."""


@contextmanager
def stage_bar(title: str) -> Iterator[Progress]:
    """Show the stages of one piece of work.

    Args:
        title: What is being done.

    Yields:
        A function that takes the stage, the steps done and the steps in all.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        # A bar in a log file is a thousand lines, or one that comes too late: say once that the work has begun.
        stages: set[str] = set()

        def tell(stage: str, done: int, total: int) -> None:
            if not stages:
                print(title, file=sys.stderr, flush=True)
            stages.add(stage)

        yield tell
        return
    columns = (
        TextColumn("{task.description}"),
        TextColumn("{task.fields[stage]:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console) as bar:
        row = bar.add_task(title, total=None, stage="load")
        yield lambda stage, done, total: bar.update(row, stage=stage, completed=done, total=total or None)
