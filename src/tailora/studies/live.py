"""The live table of a study on stderr: redrawn in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tailora.studies.board import Board
from tailora.studies.expansion import Run
from tailora.studies.messages import Ended, Message, Started

_ROWS = 12


class Lines:
    """A line for what begins and what ends, for logs."""

    def __init__(self, board: Board):
        """Keep the board.

        Args:
            board: Where the study stands.
        """
        self.board = board

    def phase(self, name: str, runs: Sequence[Run], missing: int) -> None:
        """Tell how many runs a phase has."""
        self.board.enter(name, runs, missing)
        what = "learning-rate search" if name == "search" else "runs"
        self.say(f"{what}: {len(runs)}, of which {missing} are to be done")

    def message(self, run: Run, message: Message) -> None:
        """Tell that a run started or ended."""
        self.board.take(run, message)
        if isinstance(message, Started):
            self.say(f"started {run.title} ({message.worker})")
        elif isinstance(message, Ended):
            outcome, board = message.outcome, self.board
            if outcome.status == "done":
                self.say(
                    f"done {run.title} in {duration(outcome.seconds)}; {board.done} of {board.total}{_left(board)}"
                )
            elif outcome.status == "failed":
                self.say(f"failed {run.title}: {outcome.error}")

    def say(self, sentence: str) -> None:
        """Print a line on stderr."""
        print(f"tailora: {sentence}", file=sys.stderr, flush=True)


class Table(Lines):
    """A table that is redrawn, with what was said above it."""

    def __init__(self, board: Board, screen: Any):
        """Keep the board and rich's live screen."""
        super().__init__(board)
        self._screen = screen

    def phase(self, name: str, runs: Sequence[Run], missing: int) -> None:
        """Show the phase."""
        super().phase(name, runs, missing)
        self._screen.update(view(self.board))

    def message(self, run: Run, message: Message) -> None:
        """Redraw; a failure is told as well."""
        self.board.take(run, message)
        if isinstance(message, Ended) and message.outcome.status == "failed":
            self.say(f"failed {run.title}: {message.outcome.error}")
        self._screen.update(view(self.board))

    def say(self, sentence: str) -> None:
        """Print a line above the table."""
        from rich.text import Text

        self._screen.console.print(Text(f"tailora: {sentence}"))


@contextlib.contextmanager
def shown(workers: int) -> Iterator[Lines]:
    """Show a study while it runs.

    Args:
        workers: How many runs are worked on at once.

    Yields:
        The watcher that ``drive`` tells.
    """
    from rich.console import Console

    board, console = Board(workers=workers), Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield Lines(board)
        return
    from rich.live import Live

    with Live(view(board), console=console, refresh_per_second=4, transient=False) as screen:
        yield Table(board, screen)


def view(board: Board) -> Any:
    """Draw the board.

    Args:
        board: Where the study stands.

    Returns:
        A renderable: scores by recipe, what is being worked on, progress.
    """
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table as Grid
    from rich.text import Text

    means = board.means()
    scores = Grid(box=None, pad_edge=False)
    for name in ("task", "budget", "recipe", "score"):
        scores.add_column(name, overflow="fold")
    for name in ("runs", "mean", "sd"):
        scores.add_column(name, justify="right")
    for task, budget, recipe, primary, count, mean, spread in means[:_ROWS]:
        deviation = "" if spread != spread else f"{spread:.4f}"
        cells = (task, budget, recipe, primary, str(count), f"{mean:.4f}", deviation)
        scores.add_row(*(Text(cell) for cell in cells))
    parts: list[Any] = [scores] if means else []
    if len(means) > _ROWS:
        parts.append(Text(f"and {len(means) - _ROWS} more", style="dim"))
    for run, worker, stage, done, total in board.active.values():
        of = f" {done}/{total}" if total else ""
        parts.append(Text(f"{worker}: {run.title}: {stage}{of}", style="dim"))
    if board.total:
        failed = f", {board.failed} failed attempts" if board.failed else ""
        parts.append(ProgressBar(total=board.total, completed=board.done, width=40))
        parts.append(Text(f"{board.phase}: {board.done} of {board.total} done{failed}{_left(board)}", style="bold"))
    return Group(*parts)


def duration(seconds: float) -> str:
    """Write a time for people.

    Args:
        seconds: The time.

    Returns:
        Such as ``40 s``, ``12 min`` or ``3 h 20 min``.
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _left(board: Board) -> str:
    left = board.left()
    return "" if left is None or board.done >= board.total else f", about {duration(left)} left"
