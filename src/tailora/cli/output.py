"""What commands print: data on stdout, talk on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def out() -> Console:
    """Return a console on stdout for tables."""
    import os

    from rich.console import Console

    # In a pipe or a file nothing has to fit: cells of six letters would help nobody.
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(highlight=False, width=wide)


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr)


@contextmanager
def live() -> Iterator[Callable[[Callable[[dict[str, Any], int], Any], dict[str, Any]], None]]:
    """Show a changing state: redrawn in a terminal, new lines only elsewhere.

    Yields:
        A function of a view (state and width to a renderable) and a state.
    """
    console = out()
    if console.is_terminal:
        from rich.live import Live

        with Live(console=console, auto_refresh=False, transient=False) as screen:
            yield lambda view, state: screen.update(view(state, console.width), refresh=True)
        return
    from tailora.cli.watching import ending, tell

    told = 0

    def lines(view: Any, state: dict[str, Any]) -> None:
        nonlocal told
        rows = state["rows"]
        if told == 0:
            print(f"{state['name']}: {state['status']}", flush=True)
        for row in rows[max(0, told - 1) :]:
            print(tell(row, state["steps"]), flush=True)
        told = len(rows) + 1
        if state["status"] != "running":
            print(ending(state), flush=True)

    yield lines
