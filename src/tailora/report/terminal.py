"""The comparison and the rank maps for a terminal; readable in 80 columns and without colour."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from rich import box
from rich.columns import Columns
from rich.console import Group as Stacked
from rich.console import RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from tailora.report import formats
from tailora.report.compare import ComparisonRow, PairedDifference, compare_runs, paired_differences
from tailora.report.grids import Column, Grid, Line, rank_grid
from tailora.report.groups import by_place, group_runs, place_label
from tailora.report.pairing import Pairs
from tailora.report.records import RunRecord
from tailora.report.tables import STANDINGS, details_of, interval_text, p_text, seeds_text, standing_of

_P = TypeVar("_P", ComparisonRow, PairedDifference)

# Background and foreground per step of rank, from the xterm palette: dark to bright blue, readable on both.
_STEPS = ((17, 231), (18, 231), (24, 231), (31, 231), (38, 16), (80, 16), (159, 16))


def comparison_table(runs: Iterable[RunRecord], baseline: str | None = None) -> RenderableType:
    """Build the comparison table.

    Args:
        runs: Finished runs, as from ``load_runs``.
        baseline: Recipe that the others are compared with; default ``lora`` where it was run.

    Returns:
        One table per task, model and budget.
    """
    return _stacked(compare_runs(runs, baseline), _comparison, "no finished run")


def _comparison(label: str, rows: Sequence[ComparisonRow]) -> Table:
    """One comparison table."""
    first = rows[0]
    perplexity = all(row.perplexity is not None for row in rows)
    table = _table(label)
    table.add_column("recipe", overflow="fold", min_width=8)
    table.add_column(f"{first.primary} {'↑' if first.higher_is_better else '↓'}", justify="right", no_wrap=True)
    for name in ("seeds", "perplexity" if perplexity else "loss", "adapter", "of base", "training", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(row.recipe + (" *" if row.baseline else ""), style="bold" if row.best else ""),
            Text(formats.with_spread(row.score, row.score_std), style="bold" if row.best else ""),
            seeds_text(row).replace(" of ", "/"),
            formats.score(row.perplexity if perplexity else row.loss),
            formats.count(row.adapter_params),
            formats.share(row.base_share),
            formats.seconds(row.train_s),
            formats.megabytes(row.peak_memory_mb),
        )
    table.caption = "* baseline; ± s.d. over seeds"
    heads = sorted({row.head_params for row in rows if row.head_params})
    if heads:
        told = formats.series([formats.count(number) for number in heads])
        table.caption += f"; the task head trains {told} parameters more"
    return table


def paired_table(runs: Iterable[RunRecord], baseline: str | None = None) -> RenderableType:
    """Build the table of paired differences to the baseline.

    Args:
        runs: Finished runs, as from ``load_runs``.
        baseline: Recipe that the others are compared with; default ``lora`` where it was run.

    Returns:
        One table per task, model and budget.
    """
    pairs = paired_differences(runs, baseline)
    nothing = "nothing to compare: there is only one recipe"
    standings = [_standings(pairs)] if pairs.standings else []
    return Stacked(_stacked(pairs, _paired, nothing), *standings)


def _standings(pairs: Pairs) -> Table:
    """Average ranks, wins, ties and losses over all places."""
    table = _table(f"Over all places, against {', '.join(dict.fromkeys(pair.baseline for pair in pairs))}")
    table.add_column("recipe", overflow="fold", min_width=8)
    for name in STANDINGS:
        table.add_column(name, justify="right", no_wrap=True)
    for entry in pairs.standings:
        table.add_row(Text(entry.recipe), *standing_of(entry))
    table.caption = pairs.friedman
    return table


def _paired(label: str, pairs: Sequence[PairedDifference]) -> RenderableType:
    """One table of paired differences, and one of what the verdicts rest on."""
    table = _table(f"Paired difference to {pairs[0].baseline}: {label}")
    table.add_column("recipe", overflow="fold", min_width=8)
    table.add_column(pairs[0].quantity, justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("p (Holm)", justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for pair in pairs:
        cells = formats.signed(pair.difference), interval_text(pair), p_text(pair.p_holm)
        table.add_row(Text(pair.recipe), *cells, Text(pair.verdict))
    seeds, examples = formats.plural(len(pairs[0].seeds), "seed"), formats.plural(pairs[0].examples, "example")
    table.caption = f"{seeds}, {examples}"
    details = _table("")
    details.title = None
    details.add_column("recipe", overflow="fold", min_width=8)
    for name in ("detectable", "seeds needed", "p", "p by seed", "McNemar"):
        details.add_column(name, justify="right", no_wrap=True)
    for pair in pairs:
        if pair.difference is not None:
            details.add_row(Text(pair.recipe), *details_of(pair)[:-1])
    details.caption = "detectable with 80 % power; McNemar: these models only"
    return Stacked(table, details) if details.row_count else table


def _stacked(
    entries: Iterable[_P], build: Callable[[str, Sequence[_P]], RenderableType], nothing: str
) -> RenderableType:
    """One table per task, model and budget, or the sentence that says why there is none."""
    parts = [build(place_label(*place), own) for place, own in by_place(entries).items()]
    return Stacked(*parts) if parts else Text(nothing)


def rank_map(
    plan: Mapping[str, Any] | RunRecord, *, title: str | None = None, largest: float | None = None
) -> RenderableType:
    """Build the rank heat map of one plan: layers down, roles across, one block of rows per stack.

    A dot is a candidate that is not adapted, a blank has no target; several targets in one place add up.

    Args:
        plan: A plan as a dict, or a run.
        title: Heading; default: the recipe and what it spends.
        largest: Rank of the strongest colour, to share a scale; default: the plan's own largest.

    Returns:
        A table.
    """
    content = plan.plan if isinstance(plan, RunRecord) else plan
    grid = rank_grid(content)
    table = _table(_plan_title(plan) if title is None else title)
    table.caption = "sums of ranks; · not adapted" if grid.crowded else "ranks; · not adapted"
    table.add_column("layer", justify="right", style="dim", no_wrap=True)
    headed: set[str] = set()
    for column in grid.shown:
        heading = {"cross-attention": "cross", "feed-forward": "ffn", "attention": "attn", "other": ""}[column.heading]
        first = heading if column.heading not in headed else ""
        headed.add(column.heading)
        table.add_column(Text(f"{first}\n{_short(column)}"), justify="center", no_wrap=True, min_width=4)
    for place, stack in enumerate(grid.stacks):
        if len(grid.stacks) > 1:
            table.add_row(Text(stack or "other", style="bold"), end_section=False)
        lines = [line for line in grid.lines if line.row.stack == stack]
        for line in lines:
            last = line is lines[-1] and place < len(grid.stacks) - 1
            table.add_row(line.label, *_cells(grid, line, largest), end_section=last)
    return table


def rank_maps(items: Sequence[RunRecord] | Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Build the rank maps of several recipes on one colour scale, side by side where the terminal is wide enough.

    Args:
        items: Runs, of which the lowest seed of every recipe is shown per task, model and budget; or recipe to plan.

    Returns:
        A renderable.
    """
    if isinstance(items, Mapping):
        return _side_by_side(items)
    groups = group_runs(items)
    parts: list[RenderableType] = []
    for group in groups:
        if len(groups) > 1:
            parts.append(Text(f"\n{group.label}", style="bold"))
        parts.append(_side_by_side({name: group.recipes[name][0].plan for name in group.ordered}))
    return Stacked(*parts) if parts else Text("no finished run")


def _side_by_side(plans: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    largest = max((rank_grid(plan).largest for plan in plans.values()), default=0.0)
    maps = [rank_map(plan, title=_plan_title(plan, name), largest=largest) for name, plan in plans.items()]
    return Columns(maps, padding=(0, 3))


def _table(title: str) -> Table:
    # Text, not str: a task called "[bold]" must not be read as markup.
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
        collapse_padding=True,
    )


def _plan_title(plan: Mapping[str, Any] | RunRecord, name: str = "") -> str:
    content = plan.plan if isinstance(plan, RunRecord) else plan
    recipe = content.get("recipe")
    own = recipe.get("name") if isinstance(recipe, Mapping) else recipe
    total = content.get("total_params")
    shown = name or (plan.recipe if isinstance(plan, RunRecord) else str(own or "plan"))
    return f"{shown}, {formats.trained(content)}" if isinstance(total, int) else shown


def _short(column: Column) -> str:
    return {"output": "out", "value": "val", "query": "query"}.get(column.label, column.label)[:6]


def _cells(grid: Grid, line: Line, largest: float | None) -> list[Text]:
    top = max(largest or grid.largest, 1.0)
    cells = []
    for column in grid.shown:
        value = grid.cells[line.places[column]] if column in line.places else None
        if not value:
            cells.append(Text("" if value is None else "·".center(4), style="dim"))
            continue
        back, front = _STEPS[min(len(_STEPS) - 1, int(value / top * len(_STEPS)))]
        style = Style(color=f"color({front})", bgcolor=f"color({back})")
        cells.append(Text(f"{value:g}".center(4), style=style))
    return cells
