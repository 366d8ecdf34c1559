"""One self-contained HTML page about a profile, with its numbers as CSV beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tailora.artifacts import write_text
from tailora.profiles import Profile
from tailora.report import formats
from tailora.report.content import readable
from tailora.report.figure_files import write_figures
from tailora.report.pages import card, check_figures_folder, column_width, page_path, render_page
from tailora.report.profile_content import ProfileContent, SignalView, signals_csv
from tailora.report.profile_figures import LINES, is_logarithmic, spectra, value_heat_map, values_by_depth
from tailora.report.style import capturing

_LOG = "Each cell is in percent of the largest cell, {top}; colours are on a logarithmic scale."
_LINEAR = "Each cell is the measured number; colours run from the smallest to the largest."
_DEPTH = "The line follows the mean over a layer's targets, the band goes from the lowest to the highest of them."
_SPECTRA = (
    "Of each role the target with the most energy, its layer behind the name; a line that falls fast needs few ranks. "
    f"At most {LINES} roles."
)


def is_profile(path: str | Path) -> bool:
    """Tell whether a folder holds a saved profile and is no run's folder."""
    folder = Path(path)
    return (folder / "profile.json").is_file() and not (folder / "status.json").exists()


def write_profile_report(
    folder: str | Path, out_html: str | Path | None = None, figures: str | Path | None = None
) -> tuple[Path, ProfileContent]:
    """Write ``report.html`` about a profile, and ``signals.csv`` next to it.

    Args:
        folder: Where ``tailora profile`` saved the profile.
        out_html: Where the page goes; default ``report.html`` in ``folder``.
        figures: Folder for every figure as SVG and PNG; none are written when left out.

    Returns:
        The path of the page, and what it shows.

    Raises:
        UserError: The profile is damaged, or a path cannot be written to.
    """
    page = page_path(Path(folder), out_html)
    check_figures_folder(figures)
    content = ProfileContent.of(Profile.load(folder))
    write_text(page.parent / "signals.csv", signals_csv(content))
    with capturing() as drawn:
        html = render_profile(content)
    if figures is not None:
        write_figures(figures, drawn)
    return write_text(page, html), content


def render_profile(content: ProfileContent) -> str:
    """Render the page.

    Args:
        content: What it shows.

    Returns:
        The whole HTML document.
    """
    signals = [_signal(content, signal, number) for number, signal in enumerate(content.signals)]
    meta = [(str(key).replace("_", " "), readable(value)) for key, value in content.meta.items() if value != ""]
    maps = [item for entry in signals for item in entry["maps"]]
    return render_page(
        "profile.html.j2",
        title=content.title,
        summary=content.summary,
        rows=signal_rows(content),
        signals=signals,
        width=column_width(maps) if maps else 0,
        skipped=content.skipped,
        meta=meta,
    )


def signal_rows(content: ProfileContent) -> list[dict[str, str]]:
    """Return the smallest and largest number of every signal and where the largest is.

    Args:
        content: What the page shows.

    Returns:
        One dict of texts per signal: ``signal``, ``numbers``, ``smallest``, ``largest``, ``at``.
    """
    rows = []
    for signal in content.signals:
        length = len(next(iter(signal.spectra.values()), ()))
        numbers = signal.values.values()
        kind = f"{length} a target, as energy" if length else "energy" if signal.energy else "one a target"
        missing = f"; {signal.missing} not finite" if signal.missing else ""
        rows.append(
            {
                "signal": signal.title,
                "numbers": kind + missing,
                "smallest": formats.number(min(numbers)) if numbers else formats.DASH,
                "largest": formats.number(max(numbers)) if numbers else formats.DASH,
                "at": signal.largest or formats.DASH,
            }
        )
    return rows


def _signal(content: ProfileContent, signal: SignalView, number: int) -> dict[str, Any]:
    """Draw everything about one signal."""
    targets, values, label = content.targets, signal.values, signal.quantity
    prefix = f"s{number}"
    drawn_map = value_heat_map(targets, values, name=f"{prefix}-map", label=label)
    told = _LOG.format(top=formats.number(max(values.values()))) if is_logarithmic(values) else _LINEAR
    maps = [card("By layer and role", told, drawn_map)] if drawn_map else []
    plots = []
    if svg := values_by_depth(targets, values, name=f"{prefix}-depth", label=label):
        plots.append(card("Through the layers", _DEPTH, svg))
    if svg := spectra(targets, signal.spectra, name=f"{prefix}-spectra", label=signal.title):
        plots.append(card("Spectra", _SPECTRA, svg))
    note = "Energy is the sum of the squared values." if signal.energy else ""
    return {"title": signal.title, "note": note, "maps": maps, "plots": plots}
