"""Score against learning rate, and against the size of the calibration, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tailora.report import formats
from tailora.report.calibration_sizes import SizeCurve
from tailora.report.learning_rates import RateFamily
from tailora.report.plots import Plot, title_axis
from tailora.report.style import INK, clip_label, series_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEFT = 56


def score_against_rate(family: RateFamily, *, name: str, order: Sequence[str] = ()) -> str:
    """Draw the mean score against the learning rate, one line per recipe, the chosen rate in a ring.

    Args:
        family: The curves of one task, model and budget.
        name: Unique on the page.
        order: Every recipe of the page, so that one recipe has one colour everywhere.

    Returns:
        SVG text.
    """
    names = [curve.recipe for curve in family.curves]
    styles = series_style([*order, *(name for name in names if name not in order)])
    plot = Plot(names, left=_LEFT)
    axes = plot.axes
    _spread_axis(axes, [rate for curve in family.curves for rate in curve.grid], 10, formats.rate)
    for curve in family.curves:
        style = styles[curve.recipe]
        for point in curve.points:
            if len(point.scores) > 1:
                seeds: dict[str, Any] = {"color": style["color"], "markersize": 6, "alpha": 0.5}
                axes.plot([point.rate] * len(point.scores), point.scores, "_", **seeds)
        xs, ys = [point.rate for point in curve.points], [point.mean for point in curve.points]
        plot.handles += axes.plot(xs, ys, linewidth=1.8, markersize=5, **style)
        if curve.score is not None:
            ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.4}
            axes.plot([curve.marked], [curve.score], "o", markersize=13, linestyle="", **ring)
    split = "validation " if family.searched else ""
    title_axis(axes, "x", "learning rate")
    title_axis(axes, "y", f"{split}{clip_label(family.primary, 18)} {_arrow(family.curves[0].higher_is_better)}")
    told = "; ".join(
        f"{curve.recipe} {formats.score(curve.score)} at {formats.rate(curve.marked)}" for curve in family.curves
    )
    alt = f"{'Validation' if family.searched else 'Final'} {family.primary} against the learning rate"
    return plot.to_svg(name, f"{alt}, at the {'chosen' if family.searched else 'shown'} rates: {told}.")


def score_against_size(curves: Sequence[SizeCurve], *, name: str, order: Sequence[str] = ()) -> str:
    """Draw the mean score against the number of calibration examples, with 95 % intervals over seeds.

    Args:
        curves: The curves of one task, model and budget.
        name: Unique on the page.
        order: Every recipe of the page.

    Returns:
        SVG text.
    """
    plot, styles = _size_plot(curves, order)
    axes = plot.axes
    places = _shifts(curves)
    for curve in curves:
        style = styles[curve.recipe]
        shift = _sideways(axes, places[curve.recipe])
        for point in curve.points:
            low, high = point.low, point.high
            if low is not None and high is not None:
                bar: dict[str, Any] = {"color": style["color"], "linewidth": 1.4, "alpha": 0.7, "transform": shift}
                axes.plot([point.size] * 2, [low, high], **bar)
        xs, ys = [point.size for point in curve.points], [point.mean for point in curve.points]
        plot.handles += axes.plot(xs, ys, linewidth=1.8, markersize=6, transform=shift, **style)
    _score_limits(axes, curves)
    title_axis(axes, "y", f"{clip_label(curves[0].primary)} {_arrow(curves[0].higher_is_better)}")
    told = "; ".join(
        f"{curve.recipe} {', '.join(f'{point.size:,}: {formats.score(point.mean)}' for point in curve.points)}"
        for curve in curves
    )
    return plot.to_svg(name, f"Score against the number of calibration examples. {told}.")


def plan_against_size(curves: Sequence[SizeCurve], *, name: str, order: Sequence[str] = ()) -> str | None:
    """Draw which share of the parameters lies elsewhere than with the largest calibration.

    Args:
        curves: The curves of one task, model and budget.
        name: Unique on the page.
        order: Every recipe of the page.

    Returns:
        SVG text, or ``None`` where no plan can be compared.
    """
    known = {
        curve.recipe: [(point.size, 100 * point.moved) for point in curve.points if point.moved is not None]
        for curve in curves
    }
    if not any(known.values()):
        return None
    plot, styles = _size_plot(curves, order)
    for curve in curves:
        xs, ys = [size for size, _ in known[curve.recipe]], [share for _, share in known[curve.recipe]]
        plot.handles += plot.axes.plot(xs, ys, linewidth=1.8, markersize=6, **styles[curve.recipe])
    top = max(share for found in known.values() for _, share in found)
    plot.axes.set_ylim(-0.04 * max(top, 5), 1.08 * max(top, 5))
    title_axis(plot.axes, "y", "parameters elsewhere, %")
    told = "; ".join(
        f"{recipe} {', '.join(f'{size:,}: {share:.0f} %' for size, share in found)}" for recipe, found in known.items()
    )
    return plot.to_svg(name, f"Share of the parameters that lie elsewhere than with the largest calibration. {told}.")


def _arrow(higher_is_better: bool) -> str:
    """Say which way is better, as the tables do: words would not fit beside a low figure."""
    return "↑" if higher_is_better else "↓"


def _size_plot(curves: Sequence[SizeCurve], order: Sequence[str]) -> tuple[Plot, dict[str, dict[str, Any]]]:
    names = [curve.recipe for curve in curves]
    plot = Plot(names, left=_LEFT)
    _spread_axis(plot.axes, [point.size for curve in curves for point in curve.points], 2, formats.count)
    title_axis(plot.axes, "x", "calibration examples")
    return plot, series_style([*order, *(name for name in names if name not in order)])


def _shifts(curves: Sequence[SizeCurve]) -> dict[str, float]:
    """Pixels by which each curve stands aside, so that no interval hides another."""
    middle = (len(curves) - 1) / 2
    return {curve.recipe: 5 * (place - middle) for place, curve in enumerate(curves)}


def _sideways(axes: Axes, pixels: float) -> Any:
    from matplotlib.transforms import Affine2D

    return axes.transData + Affine2D().translate(pixels, 0)


def _score_limits(axes: Axes, curves: Sequence[SizeCurve]) -> None:
    """Show all seeds, and the intervals as far as they do not dwarf these: those of two seeds are very wide."""
    scores = [score for curve in curves for point in curve.points for score in point.scores]
    ends = [end for curve in curves for point in curve.points for end in (point.low, point.high) if end is not None]
    reach = max(scores) - min(scores) or 0.05 * (abs(scores[0]) or 1.0)
    low = max(min([*scores, *ends]), min(scores) - 1.5 * reach)
    high = min(max([*scores, *ends]), max(scores) + 1.5 * reach)
    margin = 0.06 * (high - low or reach)
    axes.set_ylim(low - margin, high + margin)


def _spread_axis(axes: Axes, values: Sequence[float], base: float, told: Callable[[float], str]) -> None:
    """Make the x axis logarithmic with a tick at the values themselves, as far as their labels have room."""
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    low, high = min(values), max(values)
    axes.set_xscale("log", base=base)
    pad = (high / low) ** 0.07 if high > low else 1.5
    axes.set_xlim(low / pad, high * pad)
    ticks = sorted(set(values))
    kept = [ticks[0]]
    for tick in ticks[1:]:
        if tick / kept[-1] >= (high / low) ** 0.14:
            kept.append(tick)
    axes.set_xticks(kept)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value)))
