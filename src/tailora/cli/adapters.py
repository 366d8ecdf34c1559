"""``tailora eval``: score a saved adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tailora.cli.output import print_json
from tailora.cli.showing import Json
from tailora.progress import stage_bar


def evaluate(
    adapter: Annotated[Path, typer.Argument(help="A run's folder, or an adapter folder.")],
    task: Annotated[
        Path | None, typer.Option("--task", help="Run configuration with model and task; default: the run's own.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value for the configuration.")] = None,
    json: Json = False,
) -> None:
    """Score a saved adapter on a task's evaluation data."""
    from tailora.config import load_config
    from tailora.errors import ConfigError
    from tailora.runs import evaluate_adapter

    if overrides and task is None:
        raise ConfigError(f"--set {overrides[0]} changes a configuration, and none is given; add --task CONFIG.yaml")
    config = None if task is None else load_config(task, overrides or [])
    with stage_bar(f"evaluating {adapter.name}") as progress:
        scores = evaluate_adapter(adapter, config, progress=progress)
    if json:
        print_json(scores)
        return
    for name, value in scores.items():
        print(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")
