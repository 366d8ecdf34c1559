"""Curves of a profile: how its ranking settled as examples came in, and the intrinsic dimension through the depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tailora.report import formats
from tailora.report.plots import Plot, plain_numbers, title_axis
from tailora.report.profile_dimension import DimensionView, boundary
from tailora.report.style import BLUE, series_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TICKS = 8


def calibration_curve(points: Sequence[tuple[int, float]], *, name: str) -> str | None:
    """Draw how alike the targets were ranked after each doubling of the examples and at the end.

    Args:
        points: Examples, ascending, and the Spearman correlation of the Fisher traces then with the final ones.
        name: Unique on the page.

    Returns:
        SVG text, or ``None`` with less than two points.
    """
    if len(points) < 2:
        return None
    plot = Plot([], left=62, bottom=46, right=22)
    examples, values = [number for number, _ in points], [value for _, value in points]
    plot.axes.set_xscale("log", base=2)
    plot.axes.plot(examples, values, color=BLUE, linewidth=2, marker="o", markersize=5)
    _ticks(plot.axes, examples)
    low = min(values)
    room = max(1 - low, 0.01) * 0.08
    plot.axes.set_ylim(low - room, max(1.0, max(values)) + room)
    plain_numbers(plot.axes, "y")
    title_axis(plot.axes, "x", "calibration examples")
    title_axis(plot.axes, "y", "rank correlation with the end")
    told = ", ".join(f"{formats.number(value)} at {formats.count(number)}" for number, value in points)
    return plot.to_svg(
        name, f"Rank correlation of the Fisher traces with the final ones by calibration examples: {told}."
    )


def dimension_by_depth(view: DimensionView, *, name: str) -> str | None:
    """Draw the intrinsic dimension at every block boundary, a line per stack, with its 95 % interval.

    Args:
        view: The dimensions.
        name: Unique on the page.

    Returns:
        SVG text, or ``None`` where no block has a dimension.
    """
    stacks = view.stacks
    if not stacks:
        return None
    bands = any(np.isfinite(point[2:]).all() for points in stacks.values() for point in points)
    styles = series_style(list(stacks))
    labels = [stack or "dimension" for stack in stacks]
    plot = Plot([*labels, *(["95 % interval"] if bands else [])], left=50, bottom=46)
    fill, told = None, []
    for stack, points in stacks.items():
        passed, values, lows, highs = (list(column) for column in zip(*points, strict=True))
        colour = BLUE if len(stacks) == 1 else styles[stack]["color"]
        if bands:
            # Unbounded ends have no place in a figure; the table says that they are unknown.
            low, high = (np.where(np.isfinite(side), side, np.nan) for side in (lows, highs))
            band = plot.axes.fill_between(passed, low, high, color=colour, alpha=0.22, linewidth=0)
            fill = fill or band
        style = {**styles[stack], "color": colour}
        plot.handles += plot.axes.plot(passed, values, linewidth=2, markersize=5, **style)
        top = max(points, key=lambda point: point[1])
        told.append(
            f"{f'{stack}: ' if stack else ''}from {values[0]:.2f} {boundary('', passed[0])} to {values[-1]:.2f} "
            f"{boundary('', passed[-1])}, highest with {top[1]:.2f} {boundary('', top[0])}"
        )
    plot.handles += [fill] if fill is not None else []
    plot.axes.locator_params(axis="x", integer=True, nbins=10)
    title_axis(plot.axes, "x", "blocks passed")
    title_axis(plot.axes, "y", "intrinsic dimension")
    return plot.to_svg(name, f"Intrinsic dimension of the hidden states at every block boundary: {'; '.join(told)}.")


def _ticks(axes: Axes, examples: Sequence[int]) -> None:
    """Write the number of examples below their points; some of them where they are many or close together."""
    from matplotlib.ticker import NullLocator

    step = -(-len(examples) // _TICKS)
    shown = list(examples)[::-1][::step]
    # The last point may follow a doubling closely, and two labels would then share a spot.
    kept = [number for number in shown if number == shown[0] or number <= shown[0] / 1.6]
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(kept, [formats.count(number) for number in kept])
