"""Ranks and parameters by layer and by role, recipe against recipe, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tailora.report.grids import Column, Row, cost_by, role_of, row_of
from tailora.report.plots import WIDTH, Plot, from_zero, layer_axis, plain_numbers, title_axis
from tailora.report.style import INK, ROLE_COLOURS, clip_label, series_style


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
    if not any(row.depth is not None for table in means.values() for row in table):
        return None
    peaks = _peaks(means, lambda row, value: f"is highest at {row.title} with {value:.3g}")
    return _by_depth(means, name=name, order=order, title="mean rank", alt=f"Mean rank by layer: {peaks}.")


def parameters_by_depth(plans: Mapping[str, Mapping[str, Any]], *, name: str, order: Sequence[str] = ()) -> str:
    """Draw the parameters spent per layer, one line per recipe.

    Args:
        plans: Recipe to plan.
        name: Unique on the page.
        order: Every recipe of the page.

    Returns:
        SVG text.
    """
    spent = {recipe: cost_by(plan, "depth") for recipe, plan in plans.items()}
    peaks = _peaks(spent, lambda row, _: f"spends most at {row.title}")
    alt = f"Adapter parameters by layer: {peaks}."
    return _by_depth(spent, name=name, order=order, title="adapter parameters", alt=alt)


def _by_depth(
    tables: Mapping[str, Mapping[Row, float]], *, name: str, order: Sequence[str], title: str, alt: str
) -> str:
    """Draw one number per layer, one line per recipe."""
    rows: list[Row] = _union(tables.values())
    # A row outside the blocks that nobody spends on would only stretch the axis.
    rows = [row for row in rows if row.depth is not None or any(table.get(row) for table in tables.values())]
    stacks = list(dict.fromkeys(row.stack for row in rows))
    rows.sort(key=lambda row: (stacks.index(row.stack), row.depth is None, row.depth or 0))
    styles = series_style(order or list(tables))
    plot = Plot(list(tables), left=58, bottom=46)
    for recipe, table in tables.items():
        values = [table.get(row, float("nan")) for row in rows]
        plot.handles += plot.axes.plot(range(len(rows)), values, linewidth=2, markersize=5, **styles[recipe])
    layer_axis(plot.axes, rows)
    from_zero(plot.axes)
    title_axis(plot.axes, "y", title)
    plain_numbers(plot.axes, "y")
    return plot.to_svg(name, alt)


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
    styles = series_style(order or list(plans))
    titles = [clip_label(role.title, 22) for role in roles]
    # Marks of one role stand a little above and below its line, so that equal ranks do not hide each other.
    pitch = max(5.0, min(9.0, 72 / len(means)))
    row = max(27.0, pitch * len(means) + 10)
    plot = Plot(list(plans), left=20 + 6.4 * max(map(len, titles)), bottom=46, right=14, height=row * len(roles) + 54)
    axes = plot.axes
    for place, (recipe, table) in enumerate(means.items()):
        shift = pitch / row * (place - (len(means) - 1) / 2)
        known = [(table[role], number + shift) for number, role in enumerate(roles) if role in table]
        style = {**styles[recipe], "linestyle": ""}
        plot.handles += axes.plot([x for x, _ in known], [y for _, y in known], markersize=7, clip_on=False, **style)
    axes.set_yticks(range(len(roles)), titles)
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.set_ylim(len(roles) - 0.5, -0.5)
    axes.set_xlim(left=0)
    title_axis(axes, "x", "mean rank")
    told = "; ".join(
        f"{recipe}: {', '.join(f'{role.title} {table[role]:.3g}' for role in roles if role in table)}"
        for recipe, table in means.items()
    )
    return plot.to_svg(name, f"Mean rank by role. {told}.")


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
    recipes = [clip_label(recipe, 18) for recipe in plans]
    left = 20 + 6.6 * max(map(len, recipes))
    titles = [role.title for role in roles]
    plot = Plot(titles, left=left, bottom=46, right=14, top=4, height=34 * len(plans) + 52)
    axes = plot.axes
    axes.grid(axis="y", visible=False)
    total = max(sum(costs.values()) for costs in spent.values()) or 1
    handles: dict[Column, Any] = {}
    for place, costs in enumerate(spent.values()):
        start = 0
        for role in roles:
            width = costs.get(role, 0)
            colour = ROLE_COLOURS.get(role.key, ROLE_COLOURS["other"])
            # A gap of a pixel or two shows the page between neighbours, whatever its colour.
            gap = min(width * 0.5, 1.5 * total / (WIDTH - left))
            bar = axes.barh(place, max(0, width - gap), left=start, height=0.68, color=colour)
            handles.setdefault(role, bar)
            if width / total * (WIDTH - left - 14) > 7 * len(role.label) + 8:
                where: dict[str, Any] = {"ha": "center", "va": "center"}
                axes.text(start + width / 2, place, role.label, color="#ffffff", fontsize=10.5, **where)
            start += width
    axes.set_yticks(range(len(plans)), recipes)
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.set_ylim(len(plans) - 0.5, -0.5)
    axes.set_xlim(0, total * 1.01)
    axes.locator_params(axis="x", nbins=6)
    plain_numbers(axes, "x")
    title_axis(axes, "x", "adapter parameters")
    plot.handles += [handles[role] for role in roles]
    parts = "; ".join(f"{recipe}: {_shares(costs)}" for recipe, costs in spent.items())
    return plot.to_svg(name, f"Adapter parameters by role. {parts}.")


def _union(tables: Iterable[Mapping[Any, float]]) -> list[Any]:
    """Keys of all tables, each table's own order kept."""
    return list(dict.fromkeys(key for table in tables for key in table))


def _peaks(tables: Mapping[str, Mapping[Row, float]], told: Callable[[Row, float], str]) -> str:
    """Say where each recipe's line is highest."""
    best = {recipe: max(table, key=table.__getitem__) for recipe, table in tables.items() if table}
    return "; ".join(f"{recipe} {told(row, tables[recipe][row])}" for recipe, row in best.items())


def _shares(costs: Mapping[Column, int]) -> str:
    total = sum(costs.values())
    if not total:
        return "nothing spent"
    return ", ".join(f"{role.title} {100 * cost / total:.0f} %" for role, cost in costs.items() if cost)
