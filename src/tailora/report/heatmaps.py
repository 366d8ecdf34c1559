"""Heat maps of layers by roles, for ranks and for signals, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailora.report.grids import Column, Grid, Row, build_grid, rank_grid
from tailora.report.style import BLUE, FAINT, INK, MUTED, ORANGE, clip_label, new_figure, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CELL_WIDTH = 40
_LEFT = 52
_HEADER = 42
_STACK_GAP = 22
_SCALE_HEIGHT = 34
SINGULAR = "sing."
"""What stands in the cell of an infinite number, the condition number of a singular weight."""
FULL = 0.78
"""Opacity of the deepest cell: what the page's text is still read on, black on white paper and white on black."""


def rank_heat_map(
    plan: Mapping[str, Any], *, name: str = "ranks", label: str = "", largest: float | None = None
) -> str:
    """Draw a plan's ranks, layers down and roles across.

    A place with several targets shows the sum of their ranks; a dot is a candidate that is not adapted; an empty
    place has no target.

    Args:
        plan: A plan with all its candidate targets.
        name: Unique on the page.
        label: What the plan belongs to, for the alt text.
        largest: Rank of the full colour, to share a scale between plans; default: the plan's own largest.

    Returns:
        SVG text.
    """
    grid = rank_grid(plan)
    top = max(largest if largest is not None else grid.largest, 1.0)
    adapted = sum(float(target["rank"]) > 0 for target in plan["targets"])
    alt = f"Heat map of the ranks{' of ' + label if label else ''}: {adapted} of {len(plan['targets'])} targets adapted"
    if grid.largest > 0:
        row, column = max(grid.cells, key=lambda place: grid.cells[place])
        alt += f", the largest cell is {grid.largest:g} at {row.title}, {column.title}"
    return draw_grid(
        grid,
        name=name,
        alt=alt + ".",
        colour=BLUE,
        strength=lambda value: value / top,
        text=lambda value: f"{value:g}" if value > 0 else "·",
        tip=lambda value: f"rank {value:g}" if value > 0 else "not adapted",
        scale=[(f"{mark:g}", mark / top) for mark in _rank_marks(top)],
        scale_title="rank",
    )


def signal_heat_map(
    plan: Mapping[str, Any],
    values: Mapping[str, float],
    *,
    name: str = "signal",
    label: str = "signal",
    average: bool = False,
) -> str:
    """Draw one signal in the layout of the rank heat map, in percent of its largest cell, colours on a log scale.

    Args:
        plan: The plan whose targets were measured.
        values: Signal per target name; an infinite one is shown as singular.
        name: Unique on the page.
        label: Name of the signal, for the alt text.
        average: Whether several targets in one place show their mean instead of their sum.

    Returns:
        SVG text.
    """
    grid = build_grid(plan["targets"], values, average=average)
    positive = [value for value in grid.cells.values() if 0 < value < math.inf]
    top, bottom = max(positive, default=1.0), min(positive, default=1.0)
    # Three decades at most: below a thousandth of the largest cell the differences no longer matter for a rank.
    span = min(3.0, max(0.3, math.log10(top / bottom))) if bottom > 0 else 3.0

    def strength(value: float) -> float:
        if math.isinf(value):
            return 1.0
        return 0.0 if value <= 0 else max(0.04, 1 + math.log10(value / top) / span)

    alt = f"Heat map of {label} by layer and role"
    if grid.cells:
        row, column = max(grid.cells, key=lambda place: grid.cells[place])
        alt += f"; the largest cell is {row.title}, {column.title}"
    marks = [10**-power for power in range(math.floor(span), -1, -1)] if span >= 1 else [10**-span, 1.0]
    return draw_grid(
        grid,
        name=name,
        alt=alt + ".",
        colour=ORANGE,
        strength=strength,
        text=lambda value: SINGULAR if math.isinf(value) else _percent(value / top),
        tip=lambda value: f"{label} {value:.3g}",
        scale=[(f"{_percent(mark)} %", strength(mark * top)) for mark in marks],
        scale_title="of the largest",
    )


def _percent(share: float) -> str:
    """Two significant digits without an exponent, so that a cell holds it."""
    percent = 100 * share
    if percent <= 0:
        return "0"
    if percent < 0.01:
        return "<.01"
    return (
        f"{percent:.0f}" if percent >= 9.95 else f"{percent:.1f}" if percent >= 0.095 else f"{percent:.2f}".lstrip("0")
    )


def _rank_marks(top: float) -> list[float]:
    step = max(1, math.ceil(top / 4))
    marks = list(range(step, int(top), step))
    # A mark next to the last one would print two labels on the same spot.
    return [*[mark for mark in marks if top - mark >= step / 2], top]


@dataclass(frozen=True)
class _Layout:
    """Where everything of a grid goes: columns by number, heights in pixels below the header."""

    columns: tuple[Column, ...]
    spots: dict[tuple[Row, Column], tuple[int, float]]
    labels: list[tuple[str, float]]
    headings: dict[str, float]
    height: float


def _lay_out(grid: Grid, cell: float) -> _Layout:
    """Place the cells."""
    spots: dict[tuple[Row, Column], tuple[int, float]] = {}
    labels: list[tuple[str, float]] = []
    headings: dict[str, float] = {}
    y = 0.0
    for line in grid.lines:
        if len(grid.stacks) > 1 and line.row.stack not in headings:
            headings[line.row.stack] = y
            y += _STACK_GAP
        elif line.row.depth is None and labels and spots and not any(row == line.row for row, _ in spots):
            y += 6
        labels.append((line.label, y))
        spots |= {place: (grid.shown.index(column), y) for column, place in line.places.items()}
        y += cell
    return _Layout(grid.shown, spots, labels, headings, y)


def draw_grid(
    grid: Grid,
    *,
    name: str,
    alt: str,
    colour: str,
    strength: Callable[[float], float],
    text: Callable[[float], str],
    tip: Callable[[float], str],
    scale: Sequence[tuple[str, float]],
    scale_title: str,
) -> str:
    """Draw the cells, the headings and the colour scale in pixel coordinates, y downwards.

    Args:
        grid: The numbers.
        name: Unique on the page.
        alt: What the map shows.
        colour: The full colour.
        strength: Value to a share of the full colour, 0 to 1.
        text: Value to what stands in its cell, at most five letters.
        tip: Value to the words shown when the pointer rests on the cell.
        scale: Labels and shares of the swatches below.
        scale_title: What the swatches measure.

    Returns:
        SVG text.
    """
    from matplotlib.patches import Rectangle

    # Deep models get flatter rows, but never so flat that the numbers touch.
    cell = min(24.0, max(14.0, 720 / max(1, len(grid.rows))))
    layout = _lay_out(grid, cell)
    body = layout.height
    width = max(_LEFT + _CELL_WIDTH * len(layout.columns) + 2, _scale_width(scale), 250)
    wraps = _scale_width(scale) + 6.5 * len(scale_title) > width
    height = _HEADER + body + _SCALE_HEIGHT + (16 if wraps else 0)
    figure = new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    size = 11.5 if cell >= 18 else 10
    tooltips: dict[str, str] = {}
    for number, ((row, column), value) in enumerate(grid.cells.items()):
        across, top = layout.spots[row, column]
        x, y = _LEFT + _CELL_WIDTH * across, _HEADER + top
        share = min(1.0, max(0.0, strength(value)))
        box = (x + 1, y + 1), _CELL_WIDTH - 2, cell - 2
        gid = f"cell-{number}"
        # Colour by opacity over the page: pale is little on white paper, and dim is little on black.
        fill = (colour, FULL * share) if share > 0 else "none"
        axes.add_artist(Rectangle(*box, facecolor=fill, edgecolor=FAINT, linewidth=0.8, gid=gid, clip_on=False))
        shown = text(value)
        axes.text(
            x + _CELL_WIDTH / 2,
            y + cell / 2,
            shown,
            color=MUTED if shown == "·" else INK,
            fontsize=size,
            ha="center",
            va="center_baseline",
        )
        tooltips[gid] = f"{row.title}, {column.title}: {tip(value)}"
    _headings(axes, grid, layout, cell)
    _scale(axes, scale, scale_title, colour, _HEADER + body + 14, wraps)
    return to_svg(figure, name, alt, tooltips)


def _headings(axes: Axes, grid: Grid, layout: _Layout, cell: float) -> None:
    """Write role names above the columns, what they belong to above those, and layer numbers beside the rows."""
    spans: dict[str, list[int]] = {}
    for number, column in enumerate(layout.columns):
        spans.setdefault(column.heading, []).append(number)
        centre = _LEFT + _CELL_WIDTH * (number + 0.5)
        label = clip_label(column.label, 8)
        axes.text(centre, _HEADER - 6, label, color=INK, fontsize=11, ha="center", va="baseline")
    for heading, numbers in spans.items():
        left, right = _LEFT + _CELL_WIDTH * numbers[0] + 3, _LEFT + _CELL_WIDTH * (numbers[-1] + 1) - 3
        if len(numbers) > 1:
            axes.text((left + right) / 2, 12, heading, color=MUTED, fontsize=11, ha="center", va="baseline")
            axes.plot([left, right], [18, 18], color=FAINT, linewidth=1)
    for label, top in layout.labels:
        place = _HEADER + top + cell / 2
        axes.text(_LEFT - 8, place, clip_label(label, 8), color=MUTED, fontsize=11, ha="right", va="center_baseline")
    if any(row.depth is not None for row in grid.rows):
        axes.text(_LEFT - 8, _HEADER - 6, "layer", color=MUTED, fontsize=11, ha="right", va="baseline")
    for stack, top in layout.headings.items():
        axes.text(
            _LEFT,
            _HEADER + top + _STACK_GAP - 6,
            clip_label(stack or "other"),
            color=INK,
            fontsize=11.5,
            fontweight="bold",
            ha="left",
            va="baseline",
        )


def _scale_width(marks: Sequence[tuple[str, float]]) -> float:
    """Return how far to the right the swatches reach."""
    return _LEFT + sum(26 + 6.5 * len(label) for label, _ in marks)


def _scale(axes: Axes, marks: Sequence[tuple[str, float]], title: str, colour: str, top: float, wraps: bool) -> None:
    """Draw a few swatches with their values: a colour scale that is also read without colour."""
    from matplotlib.patches import Rectangle

    x = float(_LEFT)
    for label, share in marks:
        fill = (colour, FULL * min(1.0, max(0.0, share)))
        axes.add_patch(Rectangle((x, top), 12, 12, facecolor=fill, edgecolor=FAINT, linewidth=0.8))
        axes.text(x + 16, top + 6, label, color=MUTED, fontsize=10.5, ha="left", va="center_baseline")
        x += 26 + 6.5 * len(label)
    x, top = (_LEFT - 2, top + 17) if wraps else (x, top)
    axes.text(x + 2, top + 6, title, color=MUTED, fontsize=10.5, ha="left", va="center_baseline")
