"""Figures of a profile: heat maps of any signal, its course through depth, and spectra, as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from tailora.report import formats
from tailora.report.grids import Column, build_grid, role_of, row_of
from tailora.report.heatmaps import SINGULAR, draw_grid, signal_heat_map
from tailora.report.plots import (
    Plot,
    both_signs,
    decades,
    label_room,
    layer_axis,
    log_counts,
    plain_numbers,
    round_counts,
    title_axis,
)
from tailora.report.style import BLUE, MUTED, ORANGE, clip_label, series_style

SPREAD = 10.0
"""Numbers that are all positive and differ by more than this factor are shown on a logarithmic scale."""

LINES = 8
"""Spectra per figure: as many as there are colours, dashes and marks."""

LONG = 32
"""Spectra with negative values and more components than this are drawn on logarithmic axes."""

_DECADES = 6
_SIGNED_DECADES = 2


def is_logarithmic(values: Mapping[str, float]) -> bool:
    """Tell whether numbers are better seen on a logarithmic scale: none negative, and the positive span a decade."""
    positive = [value for value in values.values() if value > 0]
    return bool(positive) and min(values.values()) >= 0 and max(positive) > SPREAD * min(positive)


def value_heat_map(
    targets: Sequence[Mapping[str, Any]], values: Mapping[str, float], *, name: str, label: str
) -> str | None:
    """Draw one number per target, layers down and roles across; several targets in one place show their mean.

    Numbers that span decades are written in percent of the largest cell and coloured on a logarithmic scale; others
    are written as they are and coloured from the smallest to the largest.

    Args:
        targets: Targets of a profile.
        values: Finite number per target name; an infinite one is shown as singular.
        name: Unique on the page.
        label: What the numbers are.

    Returns:
        SVG text, or ``None`` without a finite number.
    """
    held = {target: value for target, value in values.items() if math.isfinite(value)}
    if not held:
        return None
    if is_logarithmic(held):
        return signal_heat_map({"targets": targets}, values, name=name, label=label, average=True)
    grid = build_grid(targets, values, average=True)
    cells = [value for value in grid.cells.values() if math.isfinite(value)]
    if not cells:
        return None
    low, high = min(cells), max(cells)
    unit = _unit(max(abs(low), abs(high)))

    def strength(value: float) -> float:
        if math.isinf(value):
            return 1.0
        return 0.08 + 0.92 * (value - low) / (high - low) if high > low else 0.5

    row, column = next(place for place, value in grid.cells.items() if value == high)
    marks = list(dict.fromkeys([low, (low + high) / 2, high]))
    return draw_grid(
        grid,
        name=name,
        alt=f"Heat map of {label} by layer and role, from {low:.3g} to {high:.3g} at {row.title}, {column.title}.",
        colour=ORANGE,
        strength=strength,
        text=lambda value: SINGULAR if math.isinf(value) else _short(value / unit),
        tip=lambda value: f"{label} {value:.4g}",
        scale=[(_short(mark / unit), strength(mark)) for mark in marks],
        scale_title="" if unit == 1 else f"× {unit:.0e}",
    )


def values_by_depth(
    targets: Sequence[Mapping[str, Any]], values: Mapping[str, float], *, name: str, label: str, axis: str = ""
) -> str | None:
    """Draw the mean over each layer's targets, and the range of these around it.

    Args:
        targets: Targets of a profile.
        values: Finite number per target name.
        name: Unique on the page.
        label: What the numbers are.
        axis: The same in few words, for the axis.

    Returns:
        SVG text, or ``None`` with less than two layers.
    """
    table: dict[Any, list[float]] = {}
    for target in targets:
        if target["depth"] is not None and target["name"] in values:
            table.setdefault(row_of(target), []).append(values[target["name"]])
    stacks = list(dict.fromkeys(row.stack for row in table))
    rows = sorted(table, key=lambda row: (stacks.index(row.stack), row.depth or 0))
    if len(rows) < 2:
        return None
    means, lows, highs = ([pick(table[row]) for row in rows] for pick in (fmean, min, max))
    plot = Plot(["mean over targets", "lowest to highest"], left=62, bottom=46)
    if is_logarithmic(values) and min(means) > 0:
        decades(plot.axes)
        # A target without any of it has no place on this scale; the range then ends at the bottom.
        floor = min(value for value in values.values() if value > 0)
        lows = [max(low, floor) for low in lows]
    else:
        plain_numbers(plot.axes, "y")
    for stack in stacks:
        own = [number for number, row in enumerate(rows) if row.stack == stack]
        band = [lows[number] for number in own], [highs[number] for number in own]
        fill = plot.axes.fill_between(own, *band, color=BLUE, alpha=0.25, linewidth=0)
        (line,) = plot.axes.plot(own, [means[n] for n in own], color=BLUE, linewidth=2, marker="o", markersize=5)
        plot.handles = plot.handles or [line, fill]
    layer_axis(plot.axes, rows)
    title_axis(plot.axes, "y", clip_label(axis or label, 30))
    top = max(range(len(rows)), key=means.__getitem__)
    ends = f"from {means[0]:.3g} at {rows[0].title} to {means[-1]:.3g} at {rows[-1].title}"
    return plot.to_svg(name, f"Mean {label} by layer: {ends}, highest with {means[top]:.3g} at {rows[top].title}.")


def spectra(
    targets: Sequence[Mapping[str, Any]], rows: Mapping[str, np.ndarray], *, name: str, label: str, shares: bool = False
) -> str | None:
    """Draw, for every role, the spectrum of the target with the most energy.

    The axis of the values is logarithmic; where one of them is negative it is linear, or, with many components,
    logarithmic on both sides of zero, and so is the axis of the components: what counts lies among the first few.

    Args:
        targets: Targets of a profile.
        rows: Target name to its finite values ``[k]``; zeros at the end are padding.
        name: Unique on the page.
        label: Name of the signal.
        shares: Whether the values are shares of one whole instead of amplitudes.

    Returns:
        SVG text, or ``None`` where nothing is positive.
    """
    best: dict[Column, tuple[float, str, np.ndarray]] = {}
    for target in targets:
        values = np.trim_zeros(rows.get(target["name"], np.zeros(0)), "b")
        if not (values > 0).any():
            continue
        role, energy = role_of(target), float((np.maximum(values, 0.0) ** 2).sum())
        if role not in best or energy > best[role][0]:
            best[role] = (energy, "" if target["depth"] is None else f" {target['depth']}", values)
    shown = sorted(sorted(best, key=lambda role: -best[role][0])[:LINES], key=lambda role: role.place)
    if not shown:
        return None
    styles = series_style([role.key for role in shown])
    drawn = {role.key: best[role][2] for role in shown}
    # As the page's words, which are about the whole signal and not the few targets that are drawn.
    signed, folded = any((values < 0).any() for values in rows.values()), is_folded(rows.values())
    titles = [role.title + best[role][1] for role in shown]
    fit = max(map(len, titles)) <= label_room(len(shown))
    plot = Plot(titles if fit else [role.brief + best[role][1] for role in shown], left=72 if signed else 62, bottom=46)
    if signed:
        plot.axes.axhline(0, color=MUTED, linewidth=1)
        if folded:
            both_signs(plot.axes, max(float(values.max()) for values in drawn.values()), _SIGNED_DECADES)
        else:
            plot.axes.yaxis.set_major_formatter(lambda value, _: formats.number(value))
    else:
        decades(plot.axes)
    told, width = [], 1.1 if folded else 1.6
    for role, title in zip(shown, titles, strict=True):
        values = drawn[role.key]
        line = values if signed else np.where(values > 0, values, np.nan)
        # On a logarithmic axis marks a fixed number of components apart would pile up at its end.
        marks = [mark - 1 for mark in round_counts(len(line))] if folded else max(1, len(line) // 8)
        plot.handles += plot.axes.plot(
            range(1, len(line) + 1), line, linewidth=width, markersize=4, markevery=marks, **styles[role.key]
        )
        told.append(f"{title} {_concentration(values, shares)}")
    if not signed:
        top, low = max(float(values.max()) for values in drawn.values()), plot.axes.get_ylim()[0]
        plot.axes.set_ylim(max(low, top / 10**_DECADES), top * 1.6)
    if folded:
        log_counts(plot.axes, max(map(len, drawn.values())))
    else:
        plot.axes.locator_params(axis="x", integer=True, nbins=8)
        plot.axes.set_xlim(left=1)
    falling = all((np.diff(values) <= 0).all() for values in drawn.values())
    title_axis(plot.axes, "x", "component, largest first" if falling else "component")
    title_axis(plot.axes, "y", "share of the variance" if shares else "value")
    return plot.to_svg(name, f"Spectra of the {label}: {'; '.join(told)}.")


def is_folded(rows: Iterable[np.ndarray]) -> bool:
    """Tell whether spectra are drawn on axes that are logarithmic on both sides of zero.

    Args:
        rows: The values ``[k]`` of every target; zeros at the end are padding.

    Returns:
        Whether one of them is negative and one of the spectra has many components.
    """
    shown = [np.trim_zeros(values, "b") for values in rows]
    return any((values < 0).any() for values in shown) and any(len(values) > LONG for values in shown)


def _concentration(values: np.ndarray, shares: bool) -> str:
    """Tell in how many components most of a spectrum lies; what is negative counts as nothing."""
    parts = np.sort(np.maximum(values, 0.0) ** (1 if shares else 2))[::-1]
    wanted, what = (0.5, "half of its variance") if shares else (0.9 * parts.sum(), "90 % of its energy")
    count = int(np.searchsorted(np.cumsum(parts), wanted * (1 - 1e-9))) + 1
    if count > len(parts):
        return f"holds less than {what} in all {len(parts)}"
    return f"holds {what} in {count} of {len(parts)}"


def _unit(size: float) -> float:
    """Power of ten to divide by, so that numbers fit their cells; 1 where they fit as they are."""
    return 1.0 if size == 0 or 0.1 <= size < 1000 else 10.0 ** math.floor(math.log10(size))


def _short(value: float) -> str:
    """At most five letters."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.{2 if value < 0 or abs(value) < 0.1 else 3}g}"
