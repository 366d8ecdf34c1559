"""Curves, scores against size, and where the parameters went, as SVG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tailora.report.grids import Column, Row, cost_by
from tailora.report.groups import Group
from tailora.report.pareto import pareto_front
from tailora.report.records import RunRecord, finite
from tailora.report.style import (
    FAINT,
    INK,
    MUTED,
    ROLE_COLOURS,
    add_legend,
    clip_label,
    legend_height,
    new_axes,
    new_figure,
    series_style,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 380
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
        SVG text, or ``None`` when nothing was logged.
    """
    lines = {recipe: [line for run in runs if (line := _line(run, split, key))] for recipe, runs in recipes.items()}
    lines = {recipe: found for recipe, found in lines.items() if found}
    if not lines:
        return None
    styles = series_style(order or list(recipes))
    labels = [clip_label(recipe) for recipe in lines]
    foot = legend_height(_WIDTH, labels)
    figure = new_figure(_WIDTH, 236 + foot)
    axes = new_axes(figure, 46, 44 + foot, 12, 8)
    handles = []
    for recipe, found in lines.items():
        style = {**styles[recipe], "marker": ""}
        if len(found) > 1:
            for line in found:
                axes.plot(list(line), list(line.values()), color=style["color"], linewidth=0.8, alpha=0.4)
        mean = _mean_line(found)
        handles += axes.plot(list(mean), list(mean.values()), linewidth=2, **style)
    axes.set_xlabel("training step", color=MUTED, fontsize=11)
    add_legend(figure, handles, labels)
    ends = "; ".join(f"{recipe} ends at {list(_mean_line(found).values())[-1]:.3g}" for recipe, found in lines.items())
    what = {"train": "Training", "eval": "Validation"}.get(split, split)
    return to_svg(figure, name, f"{what} {key} against the training step: {ends}.")


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
    labels = [clip_label(recipe) for recipe in ordered]
    foot = legend_height(_WIDTH, [*labels, FRONT])
    figure = new_figure(_WIDTH, 236 + foot)
    axes = new_axes(figure, 52, 44 + foot, 12, 8)
    sizes = [size for found in points.values() for size, _ in found]
    _size_axis(axes, sizes)
    handles = []
    for place, recipe in enumerate(ordered):
        found, style = sorted(points[recipe]), styles[recipe]
        # Equal budgets give equal sizes: marks are moved sideways by a few pixels so that none hides another.
        shift = _pixels(axes, 9 * (place - (len(ordered) - 1) / 2))
        xs, ys = [size for size, _ in found], [fmean(scores) for _, scores in found]
        axes.plot(xs, ys, color=style["color"], linewidth=1, alpha=0.6, transform=shift)
        for size, scores in found:
            axes.plot([size] * 2, [min(scores), max(scores)], color=style["color"], linewidth=2, transform=shift)
            axes.plot([size] * len(scores), scores, "_", color=style["color"], markersize=7, transform=shift)
        mark = {"color": style["color"], "marker": style["marker"], "markersize": 8, "linestyle": ""}
        handles += axes.plot(xs, ys, transform=shift, **mark)
    front = _front(axes, groups, points) if len(sizes) > len(ordered) else []
    # The shifted marks are outside matplotlib's own bookkeeping of the data range.
    scores = [score for found in points.values() for _, values in found for score in values]
    margin = 0.08 * (max(scores) - min(scores)) or 0.05 * (abs(scores[0]) or 1.0)
    axes.set_ylim(min(scores) - margin, max(scores) + margin)
    axes.set_ylabel(_score_name(groups[0]), color=MUTED, fontsize=11)
    if front:
        handles.append(front[0])
        labels.append(FRONT)
    add_legend(figure, handles, labels)
    best = "; ".join(
        f"{recipe} {max(points[recipe])[0]:,.0f}: {fmean(max(points[recipe])[1]):.3g}" for recipe in ordered
    )
    alt = f"Primary score against trainable adapter parameters, at the largest size: {best}."
    if front:
        told = ", ".join(f"{recipe} at {size:,.0f}" for recipe, size, _ in front[1])
        alt += f" The Pareto front is made of {told}."
    return to_svg(figure, name, alt)


def parameters_by_role(plans: Mapping[str, Mapping[str, Any]], *, name: str) -> str:
    """Draw one bar per recipe, divided by the roles on which its parameters were spent.

    Args:
        plans: Recipe to plan.
        name: Unique on the page.

    Returns:
        SVG text.
    """
    spent = {recipe: cost_by(plan, "role") for recipe, plan in plans.items()}
    roles: list[Column] = [role for role in _union(spent.values()) if any(costs.get(role) for costs in spent.values())]
    labels = [role.title for role in roles]
    foot = legend_height(_WIDTH, labels)
    figure = new_figure(_WIDTH, 34 * len(plans) + 40 + foot)
    left = 20 + 6.6 * max(len(clip_label(recipe, 18)) for recipe in plans)
    axes = new_axes(figure, left, 34 + foot, 14, 4)
    axes.grid(axis="y", visible=False)
    total = max(sum(costs.values()) for costs in spent.values()) or 1
    handles: dict[Column, Any] = {}
    for place, costs in enumerate(spent.values()):
        start = 0
        for role in roles:
            width = costs.get(role, 0)
            colour = ROLE_COLOURS.get(role.key, ROLE_COLOURS["other"])
            # A gap of a pixel or two shows the page between neighbours, whatever its colour.
            gap = min(width * 0.5, 1.5 * total / (_WIDTH - left))
            bar = axes.barh(place, max(0, width - gap), left=start, height=0.68, color=colour)
            handles.setdefault(role, bar)
            if width / total * (_WIDTH - left - 14) > 7 * len(role.label) + 8:
                axes.text(
                    start + width / 2, place, role.label, color="#ffffff", fontsize=10.5, ha="center", va="center"
                )
            start += width
    axes.set_yticks(range(len(plans)), [clip_label(recipe, 18) for recipe in plans])
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.set_ylim(len(plans) - 0.5, -0.5)
    axes.set_xlim(0, total * 1.01)
    _plain_numbers(axes, "x")
    add_legend(figure, [handles[role] for role in roles], labels)
    parts = "; ".join(f"{recipe}: {_shares(costs)}" for recipe, costs in spent.items())
    return to_svg(figure, name, f"Adapter parameters by role. {parts}.")


def parameters_by_depth(plans: Mapping[str, Mapping[str, Any]], *, name: str, order: Sequence[str] = ()) -> str:
    """Draw the parameters spent per layer, one stepped line per recipe.

    Args:
        plans: Recipe to plan.
        name: Unique on the page.
        order: Every recipe of the page.

    Returns:
        SVG text.
    """
    spent = {recipe: cost_by(plan, "depth") for recipe, plan in plans.items()}
    rows: list[Row] = _union(spent.values())
    # A row outside the blocks that nobody spends on would only stretch the axis.
    rows = [row for row in rows if row.depth is not None or any(costs.get(row) for costs in spent.values())]
    styles = series_style(order or list(plans))
    labels = [clip_label(recipe) for recipe in plans]
    foot = legend_height(_WIDTH, labels)
    figure = new_figure(_WIDTH, 236 + foot)
    axes = new_axes(figure, 58, 46 + foot, 12, 8)
    axes.grid(axis="x", visible=False)
    handles = []
    for recipe, costs in spent.items():
        values = [costs.get(row, 0) for row in rows]
        style = styles[recipe]
        handles += axes.plot(
            range(len(rows)),
            values,
            drawstyle="steps-mid",
            linewidth=2,
            color=style["color"],
            linestyle=style["linestyle"],
        )
        axes.plot(range(len(rows)), values, style["marker"], color=style["color"], markersize=5)
    every = max(1, -(-len(rows) // 12))
    shown = [number for number, row in enumerate(rows) if row.depth is None or row.depth % every == 0]
    axes.set_xticks(shown, [rows[number].label for number in shown])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(depth_label(rows), color=MUTED, fontsize=11)
    for number in range(1, len(rows)):
        if rows[number].stack != rows[number - 1].stack:
            axes.axvline(number - 0.5, color=FAINT, linewidth=1.5)
    _plain_numbers(axes, "y")
    add_legend(figure, handles, labels)
    peaks = "; ".join(
        f"{recipe} spends most at {max(costs, key=lambda row: costs[row]).title}"
        for recipe, costs in spent.items()
        if costs
    )
    return to_svg(figure, name, f"Adapter parameters by layer: {peaks}.")


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


def _union(tables: Iterable[Mapping[Any, int]]) -> list[Any]:
    """Keys of all tables, each table's own order kept."""
    return list(dict.fromkeys(key for table in tables for key in table))


def _shares(costs: Mapping[Column, int]) -> str:
    total = sum(costs.values())
    if not total:
        return "nothing spent"
    return ", ".join(f"{role.title} {100 * cost / total:.0f} %" for role, cost in costs.items() if cost)


def depth_label(rows: Sequence[Row]) -> str:
    """Return the label of a layer axis, naming the stacks in order where there are several."""
    stacks = list(dict.fromkeys(row.stack for row in rows))
    return (
        "layer"
        if len(stacks) < 2
        else "layer of " + ", then of ".join(clip_label(stack or "the rest") for stack in stacks)
    )


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
    _plain_numbers(axes, "x")
    axes.set_xlabel("trainable adapter parameters", color=MUTED, fontsize=11)


def _plain_numbers(axes: Axes, which: str) -> None:
    """Write 82.9k and 2.4M instead of an offset or an exponent."""
    from matplotlib.ticker import FuncFormatter

    def short(value: float, _: object = None) -> str:
        for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:.3g}{unit}"
        return f"{value:g}"

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(short))


def _pixels(axes: Axes, shift: float) -> Any:
    from matplotlib.transforms import Affine2D

    return axes.transData + Affine2D().translate(shift, 0)
