"""The page's figures as separate files, for papers and slides."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tailora.artifacts import write_text
from tailora.report.pages import check_figures_folder
from tailora.report.style import Captured
from tailora.report.tables import escape_markdown


def write_figures(folder: str | Path, figures: Iterable[Captured]) -> list[Path]:
    """Write every figure as SVG and PNG, and ``figures.md`` with what each one shows.

    Args:
        folder: Made where it is missing; files of the same names are replaced.
        figures: What ``style.capturing`` collected.

    Returns:
        The paths of the pictures.

    Raises:
        UserError: ``folder`` is a file.
    """
    check_figures_folder(folder)
    place = Path(folder)
    paths, lines = [], []
    for figure in figures:
        name = re.sub(r"[^A-Za-z0-9]+", "-", figure.name).strip("-") or "figure"
        paths.append(write_text(place / f"{name}.svg", figure.svg + "\n"))
        picture = place / f"{name}.png"
        picture.write_bytes(figure.png)
        paths.append(picture)
        lines.append(f"- `{name}`: {escape_markdown(figure.alt)}")
    write_text(place / "figures.md", "\n".join(["# Figures", "", *lines]) + "\n")
    return paths
