"""``tailora train`` and ``tailora demo``: do runs and show them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tailora.cli.output import out, print_json, say
from tailora.cli.showing import Json
from tailora.progress import stage_bar


def train(
    config: Annotated[Path, typer.Argument(help="YAML configuration of the run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, such as training.learning_rate=1e-3.")
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait where another process is at work on the same run.")
    ] = 0.0,
    json: Json = False,
) -> None:
    """Profile, plan, train and evaluate one run, then write its report; a run cut off continues."""
    from tailora import processes
    from tailora.artifacts import read_json
    from tailora.config import load_config
    from tailora.runs import execute, is_done

    loaded = load_config(config, overrides or [])
    done = is_done(loaded)
    with stage_bar(f"{loaded.recipe}, seed {loaded.seed}") as progress:
        folder = execute(loaded, progress=progress, wait=wait)
    if done:
        say("tailora: this run is already done; its results follow")
    if not processes.is_main():
        return  # under a launcher, the first process alone reports
    from tailora.report.html import write_report

    page = write_report(folder)
    if json:
        names = ("scores", "counts", "timings")
        print_json({"run": str(folder), "report": str(page), **{n: read_json(folder / f"{n}.json") for n in names}})
        return
    from tailora.report.runs import load_runs
    from tailora.report.terminal import comparison_table

    out().print(comparison_table(load_runs(folder)))
    print(f"run: {folder}\nreport: {page}")


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for data, runs and report.")] = Path(
        "tailora-demo"
    ),
    seeds: Annotated[int, typer.Option(min=1, max=20, help="Seeds per recipe.")] = 2,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps only: shows that it works, not what is better.")
    ] = False,
) -> None:
    """Tell the whole story in a few minutes: profile, plan, train and compare three recipes on real data, no hub."""
    from tailora.demo import run_demo

    run_demo(output, seeds=tuple(range(seeds)), quick=quick, console=out())
