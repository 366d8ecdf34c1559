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
    harness: Annotated[
        str | None, typer.Option("--harness", help="Tasks of lm-eval to score as well, such as gsm8k,arc_easy.")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option("--include-path", help="Folder with lm-eval task files of your own.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option("--data-root", help="What ${data_root} stands for in these task files.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Examples per lm-eval task.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", help="Solved examples before each question of an lm-eval task.")
    ] = None,
    json: Json = False,
) -> None:
    """Score a saved adapter on a task's evaluation data, and on tasks of lm-eval."""
    from tailora.config import load_config
    from tailora.errors import ConfigError
    from tailora.runs import evaluate_adapter

    if overrides and task is None:
        raise ConfigError(f"--set {overrides[0]} changes a configuration, and none is given; add --task CONFIG.yaml")
    config = None if task is None else load_config(task, overrides or [])
    given = {
        "tasks": harness,
        "include_path": include_path and str(include_path.expanduser().resolve()),
        "data_root": data_root and str(data_root.expanduser().resolve()),
        "limit": limit,
        "num_fewshot": num_fewshot,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    with stage_bar(f"evaluating {adapter.name}") as progress:
        scores = evaluate_adapter(adapter, config, harness=changes, progress=progress)
    if json:
        print_json(scores)
        return
    for name, value in scores.items():
        print(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")
