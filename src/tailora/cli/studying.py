"""``tailora study``: all runs of a study, whatever of them is missing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailora.cli.output import out, print_json, say
from tailora.cli.showing import Json

if TYPE_CHECKING:
    from tailora.studies.definition import Study
    from tailora.studies.drive import Executor, Result
    from tailora.studies.expansion import Expansion
    from tailora.studies.settings import Settings


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="What is compared.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Such as scale=small or base.training.max_steps=50."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs and what is left of them; do nothing.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Worker processes; without it the runs are done in this one.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A Ray cluster's address, or local for one here.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try runs again that failed twice before.")
    ] = False,
    json: Json = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report in the end.")] = False,
) -> None:
    """Do the missing runs of a study and compare them; stopped or killed, the same command continues."""
    from tailora.artifacts import check_writable
    from tailora.studies.expansion import expand
    from tailora.studies.files import load_study

    loaded = load_study(file, overrides or [])
    executor, settings = _executor(loaded, workers, ray)
    expansion = expand(loaded)
    for note in expansion.notes:
        say(f"tailora: {note}")
    if dry_run:
        _show(expansion, json)
        return
    check_writable(loaded.folder)
    result = _drive(expansion, executor, settings, retry_failed)
    page = None if no_report or not result.done else _report(loaded)
    if json:
        print_json(_told(expansion, result, page))
    elif result.done:
        _print(loaded, page)
    if result.failed:
        from tailora.errors import TailoraError

        run, error = result.failed[0]
        more = f" (and {len(result.failed) - 1} more)" if len(result.failed) > 1 else ""
        known = len(result.done) + len(result.failed)
        raise TailoraError(
            f"{len(result.failed)} of {known} runs failed: {run.title}: {error}{more}; the others are done, and the "
            "same command with --retry-failed tries again"
        )
    _complain_about_search(result)


def _complain_about_search(result: Result) -> None:
    """Fail where a recipe has no learning rate, and so no runs."""
    without = [choice for choice in result.choices if choice.rate is None]
    if without:
        from tailora.errors import TailoraError

        raise TailoraError(
            f"{', '.join(without[0].place[1:])} has no learning rate whose search runs are all there; change the grid"
        )


def _executor(study: Study, workers: int | None, ray: str | None) -> tuple[Executor, Settings]:
    """Choose where the runs are executed."""
    from tailora.config_files import world_size
    from tailora.errors import UserError
    from tailora.studies.settings import Settings

    if world_size() > 1:
        raise UserError(
            f"tailora study was started by a launcher with {world_size()} processes, each of which would do all runs; "
            "start it alone with --workers, or launch 'tailora train' for each run"
        )
    if workers is not None and ray is not None:
        raise UserError(f"--workers {workers} and --ray {ray} are both given; keep one")
    needs = study.resources
    settings = Settings(workers or 0, ray, needs.cpus, needs.gpus, study.folder / "logs")
    if ray is not None:
        from tailora.studies.executors.ray import execute
    elif workers is not None:
        from tailora.studies.executors.workers import execute
    else:
        from tailora.studies.executors.here import execute
    return execute, settings


def _drive(expansion: Expansion, executor: Executor, settings: Settings, retry_failed: bool) -> Result:
    from tailora.stopping import StopRequest
    from tailora.studies.drive import drive
    from tailora.studies.live import shown

    with contextlib.ExitStack() as held:
        held.enter_context(StopRequest().listening())
        if settings.ray is not None:
            from tailora.studies.executors.ray_cluster import connected

            # Held over the search, the runs and what is tried again: starting a cluster takes about ten seconds.
            held.enter_context(connected(settings))
        watcher = held.enter_context(shown(max(1, settings.workers)))
        return drive(expansion, executor, settings, watcher, retry_failed=retry_failed)


def _report(study: Study) -> Path:
    from tailora.report.html import write_report

    return write_report(study.folder, baseline=study.baseline)


def _print(study: Study, page: Path | None) -> None:
    from tailora.report.runs import load_runs
    from tailora.report.terminal import comparison_table

    out().print(comparison_table(load_runs(study.runs_folder), study.baseline))
    print(f"study: {study.folder}")
    if page is not None:
        print(f"report: {page}")


def _told(expansion: Expansion, result: Result, page: Path | None) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    from tailora.run_folders import run_folder, stored

    runs = []
    for run in result.done:
        folder = run_folder(run.config)
        scores = stored(folder / "scores.json") or {}
        runs.append(
            {
                **run.labels,
                "role": run.role,
                "hash": run.config.hash,
                "primary": scores.get("primary"),
                "score": scores.get(str(scores.get("primary"))),
                "folder": str(folder),
            }
        )
    return {
        "study": expansion.study.name,
        "folder": str(expansion.study.folder),
        "report": None if page is None else str(page),
        "done": len(result.done),
        "new": result.new,
        "failed": [
            {**run.labels, "role": run.role, "hash": run.config.hash, "error": error} for run, error in result.failed
        ],
        "learning_rates": [choice.to_dict() for choice in result.choices],
        "runs": runs,
    }


def _show(expansion: Expansion, json: bool) -> None:
    """Show what there is to do."""
    from dataclasses import asdict

    from tailora.studies.estimate import estimate
    from tailora.studies.live import duration
    from tailora.studies.search import choose

    study = expansion.study
    grid = study.learning_rate.search
    choices = choose(expansion)
    # Until a rate is chosen, any rate of the grid stands for the run that is to come.
    rates = {choice.place: grid[0] if choice.rate is None else choice.rate for choice in choices}
    final = expansion.final(rates)
    found = estimate(expansion, final)
    axes = {
        axis: list(dict.fromkeys(run.labels[axis] for run in (*expansion.search, *final)))
        for axis in ("model", "task", "recipe", "budget", "learning_rate", "seed")
    }
    if json:
        rows = [
            asdict(row) | dict(zip(("model", "task", "recipe", "budget"), row.place, strict=True)) for row in found.rows
        ]
        print_json(
            {
                "study": study.name,
                "folder": str(study.folder),
                "axes": axes,
                "rows": [{key: value for key, value in row.items() if key != "place"} for row in rows],
                "seconds": found.seconds,
                "basis": found.basis,
            }
        )
        return
    from rich.text import Text

    console = out()
    for table in (_axes_table(axes), _rows_table(found.rows)):
        console.print(table)
        console.print()
    console.print("params, steps and tokens are those of one run, at most", style="dim")
    total, missing = (sum(getattr(row, key) for row in found.rows) for key in ("runs", "missing"))
    time = "" if found.seconds is None else f"{duration(found.seconds)}, one run after another, "
    console.print(Text(f"{total} runs, {missing} to be done; estimated time: {time}{found.basis}"), soft_wrap=True)
    console.print(Text(f"study: {study.folder}"), soft_wrap=True)


def _axes_table(axes: dict[str, list[str]]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("axis")
    table.add_column("number", justify="right")
    table.add_column("values", overflow="fold")
    for axis, labels in axes.items():
        table.add_row(axis.replace("_", " "), str(len(labels)), escape(", ".join(labels)))
    return table


def _rows_table(rows: Any) -> Any:
    from rich.markup import escape
    from rich.table import Table

    from tailora.studies.live import duration

    models = len({row.place[0] for row in rows}) > 1
    phases = len({row.role for row in rows}) > 1
    table = Table(box=None, pad_edge=False)
    words = [*(["phase"] if phases else []), *(["model"] if models else []), "task", "recipe", "budget"]
    for name in words:
        table.add_column(name, overflow="fold")
    for name in ("runs", "done", "to do", "failed", "params", "steps", "tokens", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        model, task, recipe, budget = row.place
        texts = [*([row.role] if phases else []), *([model] if models else []), task, recipe, budget]
        counts = (row.runs, row.done, row.missing, row.failed, row.adapter_params, row.steps, row.tokens)
        numbers = ["?" if value is None else f"{value:,}" for value in counts]
        left = "?" if row.seconds is None else duration(row.seconds)
        table.add_row(*(escape(text) for text in texts), *numbers, left)
    return table
