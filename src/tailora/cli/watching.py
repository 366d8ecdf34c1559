"""``tailora watch``: what a run is doing, from its files alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tailora.cli.output import live

ENDED = ("done", "failed", "interrupted", "stopped")


def watch(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show the present state and stop.")] = False,
) -> None:
    """Follow a run from another terminal until it ends or is killed (Ctrl-C stops watching, not the run)."""
    from tailora.errors import UserError

    if not (run / "config.json").is_file():
        raise UserError(f"{str(run)!r} holds no config.json; give the folder of one run, as 'tailora train' names it")
    with live() as show:
        while True:
            state = read_state(run)
            show(_view, state)
            if once or state["status"] in ENDED:
                break
            time.sleep(every)
    if state["status"] in ("failed", "stopped"):
        raise typer.Exit(1)


def read_state(run: Path) -> dict[str, Any]:
    """Read what a run's files say now.

    Args:
        run: The run's folder.

    Returns:
        ``name``, ``status``, ``error``, ``steps`` (0 when unknown), ``rows`` of the history, ``scores``. A run that
        wrote no status and that no process works on is ``stopped``.
    """
    from tailora.report.liveness import worker

    # Before the status, which a run writes while it still holds its folder: else one that ends now would look killed.
    at_work = worker(run) is not None
    config, status = _object(run / "config.json"), _object(run / "status.json")
    training = config.get("training")
    steps = training.get("max_steps") if isinstance(training, dict) else None
    found, error = str(status.get("status") or ""), str(status.get("error") or "")
    if not found:
        found = "running" if at_work else "stopped"
        error = "" if at_work else "no process works on it; run the same command again to continue"
    return {
        "name": run.name,
        "status": found,
        "error": error,
        "steps": steps if isinstance(steps, int) and steps > 0 else 0,
        "rows": _rows(run / "history.jsonl"),
        "scores": _object(run / "scores.json"),
    }


def _object(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty while it is missing or half-written."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    """Read the history's whole lines; the last one may still be being written."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def tell(row: dict[str, Any], steps: int = 0) -> str:
    """Write a row of the history as one line.

    Args:
        row: The row.
        steps: Steps in all, 0 when unknown.

    Returns:
        Such as ``step 20/200 train loss 0.6931 learning_rate 0.001``.
    """
    total = f"/{steps}" if steps else ""
    numbers = [
        f"{key} {value:.4g}"
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return " ".join([f"step {row.get('step', '?')}{total}", str(row.get("split", "")), *numbers])


def ending(state: dict[str, Any]) -> str:
    """Write how a run stands or how it ended, one line.

    Args:
        state: What ``read_state`` returned.

    Returns:
        Name, status, and the primary score or the error.
    """
    scores = state["scores"]
    primary = scores.get("primary")
    value = scores.get(primary) if isinstance(primary, str) else None
    tail = f": {primary} {value:.4f}" if state["status"] == "done" and isinstance(value, int | float) else ""
    if state["error"]:
        tail = f": {state['error']}"
    return f"{state['name']}: {state['status']}{tail}"


def _view(state: dict[str, Any], console_width: int) -> Any:
    """Build the live view: where the run is, its losses as a small curve, the last rows."""
    from rich.console import Group
    from rich.text import Text

    rows = state["rows"]
    last = max((row["step"] for row in rows if isinstance(row.get("step"), int)), default=0)
    parts: list[Any] = [Text(ending(state), style="bold")]
    if state["steps"]:
        from rich.progress_bar import ProgressBar

        parts.append(ProgressBar(total=state["steps"], completed=min(last, state["steps"]), width=40))
    for split in ("train", "eval"):
        losses = [row["loss"] for row in rows if row.get("split") == split and isinstance(row.get("loss"), int | float)]
        if losses:
            parts.append(Text(f"{split:<6}{sparkline(losses, console_width - 30)} {losses[0]:.4g} → {losses[-1]:.4g}"))
    parts += [Text(tell(row, state["steps"]), style="dim") for row in rows[-5:]]
    return Group(*parts)


def sparkline(values: list[float], width: int) -> str:
    """Draw numbers as a line of blocks, neighbours averaged where there is no room.

    Args:
        values: At least one number.
        width: Largest number of letters, at least 8.

    Returns:
        One letter per number or per group of neighbours.
    """
    width = max(8, width)
    size = -(-len(values) // width)
    means = [sum(part) / len(part) for part in (values[k : k + size] for k in range(0, len(values), size))]
    known = [value for value in means if value == value and abs(value) != float("inf")]
    low, high = min(known, default=0.0), max(known, default=0.0)
    blocks = "▁▂▃▄▅▆▇█"
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[round((value - low) * scale)] if value in known else "?" for value in means)
