"""The figure of a family: every seed's share of the oracle's gap, contestant by contestant."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tailora.lab.contestants import ORACLE, UNIFORM
from tailora.lab.results import Row
from tailora.report.style import BLUE, INK, MUTED, clip_label, new_axes, new_figure, to_svg

_WIDTH, _LINE = 620, 24
_LOWEST = -1.5


def gap_figure(rows: Sequence[Row], *, name: str) -> str:
    """Draw one line per contestant.

    Args:
        rows: A family's rows, in the order in which they are drawn.
        name: Unique on the page.

    Returns:
        SVG text; empty where the oracle gains nothing on this family.
    """
    shown = [row for row in rows if math.isfinite(row.gap.mean) and row.contestant not in (ORACLE, UNIFORM)]
    if not shown:
        return ""
    figure = new_figure(_WIDTH, _LINE * len(shown) + 60)
    axes = new_axes(figure, 150, 44, 12, 8)
    lowest = min(min((gap for row in shown for gap in row.gaps if math.isfinite(gap)), default=0.0), 0.0)
    left = max(lowest, _LOWEST) - 0.08
    for place, row in enumerate(shown):
        # Far worse than uniform is far worse: the marks stop at the edge, the table has the numbers.
        marks = [max(gap, left) for gap in row.gaps if math.isfinite(gap)]
        axes.plot(marks, [place] * len(marks), "o", color=BLUE, alpha=0.45, markersize=5, linestyle="")
        if math.isfinite(row.gap.low):
            axes.plot([max(row.gap.low, left), max(row.gap.high, left)], [place] * 2, color=INK, linewidth=1.6)
        axes.plot([max(row.gap.mean, left)], [place], "D", color=INK, markersize=6, linestyle="")
    for value, dash in ((0.0, "-"), (1.0, (0, (3, 2)))):
        axes.axvline(value, color=MUTED, linewidth=1, linestyle=dash)
    axes.set_yticks(range(len(shown)), [clip_label(row.contestant, 20) for row in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    highest = max(gap for row in shown for gap in row.gaps if math.isfinite(gap))
    axes.set_xlim(left, max(1.05, min(highest, 2.0) + 0.05))
    axes.set_xlabel("share of the oracle's gap (0 uniform, 1 oracle)", color=MUTED, fontsize=11)
    told = "; ".join(f"{row.contestant} {row.gap.mean:.2f}" for row in shown)
    return to_svg(figure, name, f"Share of the oracle's gap closed, mean over seeds: {told}.")
