"""``tailora report``: compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tailora.cli.output import out, print_json, say
from tailora.cli.showing import Json


def report(
    path: Annotated[Path, typer.Argument(help="A run's folder, or a folder of run folders.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The HTML file; default report.html in PATH.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Recipe to compare with; default lora where it was run.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for every figure as SVG and PNG.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    json: Json = False,
) -> None:
    """Compare runs: a table here, and one self-contained HTML page with figures."""
    from tailora.report.html import write_report
    from tailora.report.runs import load_runs
    from tailora.report.terminal import comparison_table, paired_table

    runs = load_runs(path)
    page = write_report(path, output, baseline=baseline, figures=figures)
    if json:
        from dataclasses import asdict

        from tailora.report.compare import compare_runs, paired_differences

        rows, pairs = compare_runs(runs, baseline), paired_differences(runs, baseline)
        print_json({"report": str(page), "rows": [asdict(r) for r in rows], "pairs": [asdict(p) for p in pairs]})
    else:
        console = out()
        console.print(comparison_table(runs, baseline))
        console.print(paired_table(runs, baseline))
        print(f"report: {page}")
        if figures is not None:
            print(f"figures: {figures}")
    if open_page and not _open(page):
        say(f"tailora: no browser could be started; open {page} by hand")


def _open(page: Path) -> bool:
    """Show a file in the user's browser; whether one was found."""
    import webbrowser

    return webbrowser.open(page.resolve().as_uri())
