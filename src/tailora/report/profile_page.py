"""One self-contained HTML page about a profile, with its numbers as CSV beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tailora.artifacts import write_text
from tailora.profiles import Profile
from tailora.report import formats
from tailora.report.figure_files import write_figures
from tailora.report.heatmaps import SINGULAR
from tailora.report.pages import card, check_figures_folder, column_width, page_path, render_page
from tailora.report.profile_content import KEPT_ENERGY, SHARE, ProfileContent, SignalView, signals_csv
from tailora.report.profile_curves import calibration_curve, dimension_by_depth
from tailora.report.profile_figures import (
    LINES,
    is_folded,
    is_logarithmic,
    spectra,
    value_heat_map,
    values_by_depth,
)
from tailora.report.profile_measured import calibration_points, calibration_words, measured_rows
from tailora.report.style import capturing

_LOG = "Each cell is in percent of the largest cell, {top}; colours are on a logarithmic scale."
_NAMED = 8
_LINEAR = "Each cell is the measured number; colours run from the smallest to the largest."
_DEPTH = "The line follows the mean over a layer's targets, the band goes from the lowest to the highest of them."
_SPECTRA = (
    "Of each role the target with the most energy, its layer behind the name; a line that falls fast needs few ranks. "
    f"At most {LINES} roles."
)
_FOLDED = (
    "a scale that is logarithmic on both sides of zero and linear next to it, over a logarithmic count of components"
)
_SIGNED_SPECTRA = (
    "Of each role the target with the most positive energy, its layer behind the name, on {scale}; what lies "
    "near or below zero is noise. At most {roles} roles."
)
_SHARES = (
    "Of each role the target whose variance is the most concentrated, its layer behind the name; a line that falls "
    f"fast needs few ranks. At most {LINES} roles."
)
_CURVE = (
    "After each doubling of the examples, the Spearman correlation over the targets between the Fisher traces then and "
    "those of all examples. A curve that is flat near 1 says that more examples would hardly move the ranking, one "
    "that still rises that they would. It flatters: the early examples are among all, and the last point is 1 where it "
    "holds them all."
)
_DIMENSION = (
    "The dimension of the surface on which the hidden states of the examples lie, from one block boundary to the next. "
    "The band is the 95 % interval from {replicates} replicates, each on a random half of the examples."
)
_BARE_DIMENSION = (
    "The dimension of the surface on which the hidden states of the examples lie, from one block boundary to the next. "
    "The profile holds too few replicates for intervals."
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
    maps = [item for entry in signals for item in entry["maps"]]
    return render_page(
        "profile.html.j2",
        title=content.title,
        summary=content.summary,
        rows=signal_rows(content),
        signals=signals,
        width=column_width(maps) if maps else 0,
        skipped=content.skipped,
        dimension=_dimension(content),
        calibration=_calibration(content),
        meta=measured_rows(content.meta),
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
        kind = signal.reduction.short if signal.reduction else ""
        kind = f"{length} a target, as {kind}" if length else kind or "one a target"
        missing = f"; unknown for {signal.missing}" if signal.missing else ""
        singular = f"; {formats.plural(len(signal.singular), 'weight')} singular" if signal.singular else ""
        largest = formats.number(max(numbers)) if numbers else formats.DASH
        rows.append(
            {
                "signal": signal.title,
                "numbers": kind + missing + singular,
                "smallest": formats.number(min(numbers)) if numbers else "singular" if singular else formats.DASH,
                "largest": "singular" if singular else largest,
                "at": signal.largest or formats.DASH,
            }
        )
    if content.dimension is not None:
        rows.append(content.dimension.row)
    return sorted(rows, key=lambda row: row["signal"])


def _signal(content: ProfileContent, signal: SignalView, number: int) -> dict[str, Any]:
    """Draw everything about one signal."""
    targets, values, label = content.targets, signal.values, signal.quantity
    prefix, axis = f"s{number}", signal.reduction.short if signal.reduction else ""
    marked = values | dict.fromkeys(signal.singular, math.inf)
    drawn_map = value_heat_map(targets, marked, name=f"{prefix}-map", label=label)
    told = _LOG.format(top=formats.number(max(values.values()))) if is_logarithmic(values) else _LINEAR
    maps = [card("By layer and role", told, drawn_map)] if drawn_map else []
    plots = []
    if svg := values_by_depth(targets, values, name=f"{prefix}-depth", label=label, axis=axis):
        plots.append(card("Through the layers", _DEPTH, svg))
    shares = signal.reduction is SHARE
    if svg := spectra(targets, signal.spectra, name=f"{prefix}-spectra", label=signal.title, shares=shares):
        scale = _FOLDED if is_folded(signal.spectra.values()) else "a linear scale"
        signed = _SIGNED_SPECTRA.format(scale=scale, roles=LINES)
        told = _SHARES if shares else signed if signal.reduction is KEPT_ENERGY else _SPECTRA
        plots.append(card("Spectra", told, svg))
    return {"title": signal.title, "note": _note(signal), "maps": maps, "plots": plots}


def _note(signal: SignalView) -> str:
    """Say what a reader must know about the numbers of a signal."""
    note = [signal.reduction.note] if signal.reduction else []
    if signal.singular:
        named = ", ".join(signal.singular[:_NAMED])
        more = f" and {len(signal.singular) - _NAMED} more" if len(signal.singular) > _NAMED else ""
        verb = "weight is" if len(signal.singular) == 1 else "weights are"
        note.append(
            f"{formats.count(len(signal.singular))} {verb} singular ({SINGULAR} in the map) and left out of the line "
            f"and the range: {named}{more}."
        )
    if not signal.values:
        note.append("There is no finite number to draw.")
    return " ".join(note)


def _dimension(content: ProfileContent) -> dict[str, Any] | None:
    """Draw the intrinsic dimension, and what GeLoRA makes of it."""
    view = content.dimension
    if view is None:
        return None
    svg = dimension_by_depth(view, name="dimension")
    told = _DIMENSION.format(replicates=view.replicates) if view.replicates > 1 else _BARE_DIMENSION
    figures = [card("Through the depth", told, svg)] if svg else []
    pooling = content.meta.get("pooling")
    return {"figures": figures, "rows": view.table(), "notes": view.notes, "pooling": pooling or ""}


def _calibration(content: ProfileContent) -> dict[str, Any] | None:
    """Draw how the ranking settled as examples came in; nothing where the profile does not say."""
    words, svg = (
        calibration_words(content.meta),
        calibration_curve(calibration_points(content.meta), name="calibration"),
    )
    if not words:
        return None
    return {"words": words, "figures": [card("Ranking against examples", _CURVE, svg)] if svg else []}
