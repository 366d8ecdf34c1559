"""Set-up that the report's line and bar figures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tailora.report import formats
from tailora.report.grids import Row
from tailora.report.style import FAINT, MUTED, add_legend, clip_label, legend_height, new_axes, new_figure, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 380
HEIGHT = 236


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


def _legend_labels(labels: Sequence[str]) -> list[str]:
    """Shorten labels; many of them to what leaves room for a second column, as long as they stay apart."""
    short = [clip_label(label, 18) for label in labels]
    crowded = len(labels) > 6 and len(set(short)) == len(set(labels))
    return short if crowded else [clip_label(label) for label in labels]


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
