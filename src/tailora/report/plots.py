"""Set-up that the report's line and bar figures share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tailora.report import formats
from tailora.report.grids import Row
from tailora.report.style import FAINT, MUTED, add_legend, clip_label, legend_height, new_axes, new_figure, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 380
HEIGHT = 236

_MANY = 6
_ROOM, _MANY_ROOM = 24, 20


class Plot:
    """Axes above a legend.

    Attributes:
        axes: Where to draw.
        handles: What the legend explains, in the order of the labels.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        left: float,
        bottom: float = 44,
        right: float = 12,
        top: float = 8,
        height: float = HEIGHT,
    ):
        """Make room.

        Args:
            labels: Labels of the legend.
            left: Left margin in pixels, for the numbers of the axis.
            bottom: Bottom margin above the legend.
            right: Right margin.
            top: Top margin.
            height: Height of everything but the legend.
        """
        self.labels = _legend_labels(labels)
        foot = legend_height(WIDTH, self.labels)
        self._figure = new_figure(WIDTH, height + foot)
        self.axes: Axes = new_axes(self._figure, left, bottom + foot, right, top)
        self.handles: list[Any] = []

    def to_svg(self, name: str, alt: str) -> str:
        """Add the legend and render.

        Args:
            name: Unique on the page.
            alt: What the figure shows.

        Returns:
            SVG text.
        """
        add_legend(self._figure, self.handles, self.labels)
        return to_svg(self._figure, name, alt)


def label_room(count: int) -> int:
    """Return how many letters a legend shows of a label: with many labels, what leaves room for a second column.

    Args:
        count: Number of labels.

    Returns:
        The number of letters.
    """
    return _MANY_ROOM if count > _MANY else _ROOM


def _legend_labels(labels: Sequence[str]) -> list[str]:
    """Shorten labels; many of them to what leaves room for a second column, as long as they stay apart."""
    short = [_clip(label, label_room(len(labels))) for label in labels]
    return short if len(set(short)) == len(set(labels)) else [_clip(label, _ROOM) for label in labels]


def _clip(label: str, limit: int) -> str:
    """Shorten a label's words; a number behind them, such as a layer's, tells labels apart and stays."""
    words, _, number = label.rpartition(" ")
    if words and number.isdigit() and len(number) + 2 < limit:
        return f"{clip_label(words, limit - len(number) - 1)} {number}"
    return clip_label(label, limit)


def title_axis(axes: Axes, which: str, text: str) -> None:
    """Write what the ``x`` or ``y`` axis measures."""
    (axes.set_xlabel if which == "x" else axes.set_ylabel)(text, color=MUTED, fontsize=11)


def layer_axis(axes: Axes, rows: Sequence[Row]) -> None:
    """Make the x axis one of layers: a tick for every few of them, a line between stacks."""
    every = max(1, -(-len(rows) // 12))
    shown = [number for number, row in enumerate(rows) if row.depth is None or row.depth % every == 0]
    axes.grid(axis="x", visible=False)
    axes.set_xticks(shown, [rows[number].label for number in shown])
    for number in range(1, len(rows)):
        if rows[number].stack != rows[number - 1].stack:
            axes.axvline(number - 0.5, color=FAINT, linewidth=1.5)
    stacks = list(dict.fromkeys(row.stack for row in rows))
    names = ", then of ".join(clip_label(stack or "the rest") for stack in stacks)
    title_axis(axes, "x", "layer" if len(stacks) < 2 else f"layer of {names}")


def from_zero(axes: Axes) -> None:
    """Start the y axis at zero and leave room above, where the frame would cut a line in half."""
    low, high = axes.get_ylim()
    axes.set_ylim(0, high + 0.06 * (high - min(low, 0)) or 1)


def plain_numbers(axes: Axes, which: str) -> None:
    """Write 82.9k and 2.4M instead of an offset or an exponent."""
    from matplotlib.ticker import FuncFormatter

    def short(value: float, _: object = None) -> str:
        for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:.3g}{unit}"
        return f"{value:g}"

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(short))


def decades(axes: Axes) -> None:
    """Make the y axis logarithmic, with labels such as 1e−5: an exponent of its own size would need mathematics."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.number(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def both_signs(axes: Axes, top: float, decades: int) -> None:
    """Make the y axis logarithmic on both sides of zero, and linear from a small fraction of the top to its negative.

    Args:
        axes: The axes.
        top: The largest value, positive.
        decades: How many powers of ten below the top the linear part begins.
    """
    from matplotlib.ticker import FuncFormatter, NullLocator, SymmetricalLogLocator

    start = max(1e-300, 10.0 ** math.ceil(math.log10(top) - decades))
    axes.set_yscale("symlog", linthresh=start, linscale=0.5)
    axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=start))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.number(value)))


def log_counts(axes: Axes, last: int) -> None:
    """Make the x axis logarithmic from 1 to a whole number.

    Args:
        axes: The axes.
        last: The largest number.
    """
    from matplotlib.ticker import NullLocator

    shown = round_counts(last)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shown, [formats.count(mark) for mark in shown])
    axes.set_xlim(0.93, last * 1.07)


def round_counts(last: int) -> list[int]:
    """Return 1, 2, 5, 10, 20, ... up to a whole number.

    Args:
        last: The number.

    Returns:
        The round numbers, ascending.
    """
    marks = [mark * 10**power for power in range(len(str(last))) for mark in (1, 2, 5)]
    return [mark for mark in marks if mark <= last]
