"""Mean ranks by layer and by role, as SVG: what the heat maps say, recipe against recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tailora.report.figures import depth_label
from tailora.report.grids import Column, Row, role_of, row_of
from tailora.report.style import (
    FAINT,
    INK,
    MUTED,
    add_legend,
    clip_label,
    legend_height,
    new_axes,
    new_figure,
    series_style,
    to_svg,
)

_WIDTH = 380


def mean_ranks(plan: Mapping[str, Any], what: str) -> dict[Any, float]:
    """Return the mean rank over the candidate targets, those not adapted counting as 0.

    Args:
        plan: A plan.
        what: ``role`` or ``depth``.

    Returns:
        Column (or row) to mean rank, in the plan's order.
    """
    ranks: dict[Any, list[float]] = {}
    for target in plan["targets"]:
        ranks.setdefault(role_of(target) if what == "role" else row_of(target), []).append(float(target["rank"]))
    return {key: sum(values) / len(values) for key, values in ranks.items()}


def ranks_by_depth(plans: Mapping[str, Mapping[str, Any]], *, name: str, order: Sequence[str] = ()) -> str | None:
    """Draw the mean rank per layer, one line per recipe.

    Args:
        plans: Recipe to plan.
        name: Unique on the page.
        order: Every recipe of the page.

    Returns:
        SVG text, or ``None`` for models without layers.
    """
    means = {recipe: mean_ranks(plan, "depth") for recipe, plan in plans.items()}
    rows: list[Row] = list(dict.fromkeys(key for table in means.values() for key in table))
    stacks = list(dict.fromkeys(row.stack for row in rows))
    rows = sorted((row for row in rows if row.depth is not None), key=lambda r: (stacks.index(r.stack), r.depth))
    if not rows:
        return None
    styles, labels = series_style(order or list(plans)), [clip_label(recipe) for recipe in plans]
    foot = legend_height(_WIDTH, labels)
    figure = new_figure(_WIDTH, 236 + foot)
    axes = new_axes(figure, 46, 46 + foot, 12, 8)
    axes.grid(axis="x", visible=False)
    handles = []
    for recipe, table in means.items():
        style = styles[recipe]
        values = [table.get(row, float("nan")) for row in rows]
        handles += axes.plot(range(len(rows)), values, linewidth=2, markersize=5, **style)
    every = max(1, -(-len(rows) // 12))
    shown = [number for number, row in enumerate(rows) if (row.depth or 0) % every == 0]
    axes.set_xticks(shown, [rows[number].label for number in shown])
    for number in range(1, len(rows)):
        if rows[number].stack != rows[number - 1].stack:
            axes.axvline(number - 0.5, color=FAINT, linewidth=1.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("mean rank", color=MUTED, fontsize=11)
    axes.set_xlabel(depth_label(rows), color=MUTED, fontsize=11)
    add_legend(figure, handles, labels)
    peaks = "; ".join(
        f"{recipe} is highest at {max(table, key=table.__getitem__).title} with {max(table.values()):.3g}"
        for recipe, table in means.items()
        if table
    )
    return to_svg(figure, name, f"Mean rank by layer: {peaks}.")


def ranks_by_role(plans: Mapping[str, Mapping[str, Any]], *, name: str, order: Sequence[str] = ()) -> str | None:
    """Draw the mean rank per role, one mark per recipe on a line per role.

    Args:
        plans: Recipe to plan.
        name: Unique on the page.
        order: Every recipe of the page.

    Returns:
        SVG text, or ``None`` for plans without candidates.
    """
    means = {recipe: mean_ranks(plan, "role") for recipe, plan in plans.items()}
    roles: list[Column] = sorted({role for table in means.values() for role in table}, key=lambda role: role.place)
    if not roles:
        return None
    styles, labels = series_style(order or list(plans)), [clip_label(recipe) for recipe in plans]
    foot = legend_height(_WIDTH, labels)
    figure = new_figure(_WIDTH, 27 * len(roles) + 54 + foot)
    axes = new_axes(figure, 20 + 6.4 * max(len(clip_label(role.title, 22)) for role in roles), 46 + foot, 14, 6)
    handles = []
    for place, (recipe, table) in enumerate(means.items()):
        # Marks of one role stand a little above and below its line, so that equal ranks do not hide each other.
        shift = 0.5 * ((place + 0.5) / len(means) - 0.5)
        known = [(table[role], number + shift) for number, role in enumerate(roles) if role in table]
        style = {**styles[recipe], "linestyle": ""}
        handles += axes.plot([x for x, _ in known], [y for _, y in known], markersize=8, **style)
    axes.set_yticks(range(len(roles)), [clip_label(role.title, 22) for role in roles])
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.set_ylim(len(roles) - 0.5, -0.5)
    axes.set_xlim(left=min(-0.02 * axes.get_xlim()[1], 0))
    axes.set_xlabel("mean rank", color=MUTED, fontsize=11)
    add_legend(figure, handles, labels)
    told = "; ".join(
        f"{recipe}: {', '.join(f'{role.title} {table[role]:.3g}' for role in roles if role in table)}"
        for recipe, table in means.items()
    )
    return to_svg(figure, name, f"Mean rank by role. {told}.")
