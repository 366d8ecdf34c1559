"""``tailora report``: compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tailora.cli.output import out, print_json, say
from tailora.cli.showing import Json


def report(
    path: Annotated[Path, typer.Argument(help="A run's folder, a folder of run folders, or a profile's folder.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The HTML file; default report.html in PATH.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Recipe to compare with; default lora where it was run.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for every figure as SVG and PNG.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    json: Json = False,
) -> None:
    """Compare runs, or show a profile: a table here, and one self-contained HTML page with figures."""
    from tailora.report.profile_page import is_profile

    page = (
        _profile(path, output, figures, baseline, json)
        if is_profile(path)
        else _runs(path, output, figures, baseline, json)
    )
    if not json:
        print(f"report: {page}")
        if figures is not None:
            print(f"figures: {figures}")
    if open_page and not _open(page):
        say(f"tailora: no browser could be started; open {page} by hand")


def _runs(path: Path, output: Path | None, figures: Path | None, baseline: str | None, json: bool) -> Path:
    """Report on runs; the path of the page."""
    from tailora.report.html import write_report
    from tailora.report.runs import load_runs
    from tailora.report.study import load_study
    from tailora.report.terminal import comparison_table, paired_table

    runs = load_runs(path)
    if baseline is None and (study := load_study(path)) is not None:
        # As on the page: what the study compares with, where that was run.
        baseline = study.baseline if study.baseline in {run.recipe for run in runs} else None
    page = write_report(path, output, baseline=baseline, figures=figures)
    if json:
        from dataclasses import asdict

        from tailora.report.compare import compare_runs, paired_differences

        rows, pairs = compare_runs(runs, baseline), paired_differences(runs, baseline)
        found = {"rows": rows, "pairs": pairs, "standings": pairs.standings}
        print_json({"report": str(page), **{name: [asdict(row) for row in shown] for name, shown in found.items()}})
    else:
        console = out()
        console.print(comparison_table(runs, baseline))
        console.print(paired_table(runs, baseline))
    return page


def _profile(path: Path, output: Path | None, figures: Path | None, baseline: str | None, json: bool) -> Path:
    """Report on a profile; the path of the page."""
    from tailora.errors import UserError
    from tailora.report.profile_page import signal_rows, write_profile_report

    if baseline is not None:
        raise UserError(f"{str(path)!r} is a profile, which has no baseline; leave --baseline {baseline} out")
    page, content = write_profile_report(path, output, figures)
    if json:
        shown = {signal.name: {"energy": signal.energy, "targets": signal.values} for signal in content.signals}
        found = {"report": str(page), "signals": shown, "skipped": content.skipped}
        if content.dimension is not None:
            found["intrinsic_dimension"] = content.dimension.as_json()
        print_json(found)
        return page
    rows = signal_rows(content)
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("signal", "values", "smallest", "largest", "at"):
        right = name in ("smallest", "largest")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*map(escape, row.values()))
    out().print(table)
    for sentence in content.skipped:
        say(f"tailora: {sentence}")
    return page


def _open(page: Path) -> bool:
    """Show a file in the user's browser; whether one was found."""
    import webbrowser

    return webbrowser.open(page.resolve().as_uri())
