"""Curves, and scores against size with the Pareto front, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tailora.report.groups import Group
from tailora.report.pareto import pareto_front
from tailora.report.plots import Plot, plain_numbers, title_axis
from tailora.report.records import RunRecord, finite
from tailora.report.style import MUTED, clip_label, series_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 60
FRONT = "Pareto front"


def curves(
    recipes: Mapping[str, Sequence[RunRecord]], split: str, key: str = "loss", *, name: str, order: Sequence[str] = ()
) -> str | None:
    """Draw a logged quantity against the training step: a thin line per seed, a thick line for their mean.

    Args:
        recipes: Recipe to its runs.
        split: ``train`` or ``eval``.
        key: What to draw, such as ``loss`` or ``accuracy``.
        name: Unique on the page.
        order: Every recipe of the page, so that one recipe has one colour everywhere.

    Returns:
        SVG text, or ``None`` when nothing was logged, or one step alone, which is no curve.
    """
    lines = {recipe: [line for run in runs if (line := _line(run, split, key))] for recipe, runs in recipes.items()}
    lines = {recipe: found for recipe, found in lines.items() if found}
    if len({step for found in lines.values() for line in found for step in line}) < 2:
        return None
    styles = series_style(order or list(recipes))
    plot = Plot(list(lines), left=50)
    for recipe, found in lines.items():
        style = {**styles[recipe], "marker": ""}
        if len(found) > 1:
            for line in found:
                plot.axes.plot(list(line), list(line.values()), color=style["color"], linewidth=0.8, alpha=0.4)
        mean = _mean_line(found)
        plot.handles += plot.axes.plot(list(mean), list(mean.values()), linewidth=2, **style)
    title_axis(plot.axes, "x", "training step")
    ends = "; ".join(f"{recipe} ends at {list(_mean_line(found).values())[-1]:.3g}" for recipe, found in lines.items())
    what = {"train": "Training", "eval": "Validation"}.get(split, split)
    return plot.to_svg(name, f"{what} {key} against the training step: {ends}.")


def score_against_parameters(groups: Sequence[Group], *, name: str, order: Sequence[str] = ()) -> str | None:
    """Draw the primary score against the adapter's size for the groups that share a task and a model.

    Args:
        groups: Groups that differ in their budget only.
        name: Unique on the page.
        order: Every recipe of the page.

    Returns:
        SVG text, or ``None`` when no run says how many parameters it trained.
    """
    points: dict[str, list[tuple[float, list[float]]]] = {}
    for group in groups:
        for recipe, runs in group.recipes.items():
            sizes = [run.adapter_params for run in runs if run.adapter_params]
            if sizes:
                points.setdefault(recipe, []).append((fmean(sizes), [run.score for run in runs]))
    if not points:
        return None
    ordered = [recipe for recipe in (order or list(points)) if recipe in points]
    styles = series_style(order or ordered)
    sizes = [size for found in points.values() for size, _ in found]
    has_front = len(sizes) > len(ordered)
    plot = Plot([*ordered, FRONT] if has_front else ordered, left=56)
    axes = plot.axes
    _size_axis(axes, sizes)
    # Smaller adapters to the left, so that the shift never undoes a small difference in size.
    places = sorted(ordered, key=lambda recipe: fmean(size for size, _ in points[recipe]))
    for recipe in ordered:
        found, style = sorted(points[recipe]), styles[recipe]
        # Equal budgets give equal sizes: marks are moved sideways by a few pixels so that none hides another.
        pitch = min(9.0, 56 / len(ordered))
        shift = _pixels(axes, pitch * (places.index(recipe) - (len(ordered) - 1) / 2))
        xs, ys = [size for size, _ in found], [fmean(scores) for _, scores in found]
        axes.plot(xs, ys, color=style["color"], linewidth=1, alpha=0.6, transform=shift)
        for size, scores in found:
            axes.plot([size] * 2, [min(scores), max(scores)], color=style["color"], linewidth=2, transform=shift)
            axes.plot([size] * len(scores), scores, "_", color=style["color"], markersize=7, transform=shift)
        mark = {"color": style["color"], "marker": style["marker"], "markersize": 8, "linestyle": ""}
        plot.handles += axes.plot(xs, ys, transform=shift, **mark)
    front = _front(axes, groups, points) if has_front else []
    # The shifted marks are outside matplotlib's own bookkeeping of the data range.
    scores = [score for found in points.values() for _, values in found for score in values]
    margin = 0.08 * (max(scores) - min(scores)) or 0.05 * (abs(scores[0]) or 1.0)
    axes.set_ylim(min(scores) - margin, max(scores) + margin)
    title_axis(axes, "y", _score_name(groups[0]))
    plot.handles += front[:1]
    best = "; ".join(
        f"{recipe} {max(points[recipe])[0]:,.0f}: {fmean(max(points[recipe])[1]):.3g}" for recipe in ordered
    )
    alt = f"Primary score against trainable adapter parameters, at the largest size: {best}."
    if front:
        told = ", ".join(f"{recipe} at {size:,.0f}" for recipe, size, _ in front[1])
        alt += f" The Pareto front is made of {told}."
    return plot.to_svg(name, alt)


def _line(run: RunRecord, split: str, key: str) -> dict[float, float]:
    """Return step to value, averaged over neighbouring steps where there are more than a plot can show."""
    points: dict[float, float] = {}
    for row in run.history:
        step, value = finite(row.get("step")), finite(row.get(key))
        if row.get("split") == split and step is not None and value is not None:
            points[step] = value
    steps = sorted(points)
    size = -(-len(steps) // _BINS) if len(steps) > 2 * _BINS else 1
    chunks = [steps[start : start + size] for start in range(0, len(steps), size)]
    return {chunk[-1]: fmean(points[step] for step in chunk) for chunk in chunks}


def _mean_line(lines: Sequence[Mapping[float, float]]) -> dict[float, float]:
    """Mean over seeds at the steps that all of them logged; the first seed's line when they share none."""
    steps = sorted(set.intersection(*(set(line) for line in lines)))
    if not steps:
        return dict(lines[0])
    return {step: fmean(line[step] for line in lines) for step in steps}


def _front(axes: Axes, groups: Sequence[Group], points: Mapping[str, Any]) -> list[Any]:
    """Draw the Pareto front of the means as a stepped line; return its handle and its points."""
    flat = [(recipe, size, fmean(scores)) for recipe, found in points.items() for size, scores in found]
    higher = groups[0].runs[0].higher_is_better
    front = [flat[place] for place in pareto_front([(size, mean) for _, size, mean in flat], higher_is_better=higher)]
    # A step holds the score reached so far until the next larger adapter does better, and on to the right edge.
    xs, ys = [size for _, size, _ in front], [mean for _, _, mean in front]
    line = {"color": MUTED, "linewidth": 1.2, "linestyle": (0, (3, 2)), "zorder": 1}
    (handle,) = axes.plot([*xs, axes.get_xlim()[1]], [*ys, ys[-1]], drawstyle="steps-post", **line)
    return [handle, front]


def _score_name(group: Group) -> str:
    run = group.runs[0]
    return f"{clip_label(run.primary)} ({'higher' if run.higher_is_better else 'lower'} is better)"


def _size_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """Set up the size axis: logarithmic over several budgets, with room on both sides for one."""
    low, high = min(sizes), max(sizes)
    if high > 1.5 * low:
        from matplotlib.ticker import NullFormatter, NullLocator

        axes.set_xscale("log")
        axes.set_xlim(low / 1.3, high * 1.3)
        ticks = sorted({round(size, -len(str(int(size))) + 2) for size in sizes})
        # Labels nearer than a tenth of the axis would run into each other.
        kept = [ticks[0]]
        for tick in ticks[1:]:
            if tick / kept[-1] >= (high / low) ** 0.15:
                kept.append(tick)
        axes.set_xticks(kept)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        middle = (low + high) / 2
        reach = max(0.6 * (high - low), 0.05 * middle)
        axes.set_xlim(middle - reach * 1.6, middle + reach * 1.6)
        axes.locator_params(axis="x", nbins=4)
    plain_numbers(axes, "x")
    title_axis(axes, "x", "trainable adapter parameters")


def _pixels(axes: Axes, shift: float) -> Any:
    from matplotlib.transforms import Affine2D

    return axes.transData + Affine2D().translate(shift, 0)
