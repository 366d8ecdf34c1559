"""One self-contained HTML page, with the same content as Markdown and CSV beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tailora.artifacts import write_text
from tailora.errors import UserError
from tailora.report import formats
from tailora.report.content import Content, citations, place_of, provenance
from tailora.report.figure_files import write_figures
from tailora.report.figures import curves, score_against_parameters
from tailora.report.flips import LIMIT as FLIP_LIMIT
from tailora.report.grids import cost_of, rank_grid, role_of, row_of
from tailora.report.groups import Group, by_place, recipe_order, short_model
from tailora.report.heatmaps import rank_heat_map, signal_heat_map
from tailora.report.latex import comparison_latex
from tailora.report.learning_rates import gathered_warnings
from tailora.report.markdown import missing_text, render_markdown
from tailora.report.pages import card, check_figures_folder, column_width, page_path, render_page
from tailora.report.records import Runs, finite
from tailora.report.runs import load_runs
from tailora.report.searches import split_searches
from tailora.report.settings import watches_score
from tailora.report.spending import parameters_by_depth, parameters_by_role, ranks_by_depth, ranks_by_role
from tailora.report.study import load_study
from tailora.report.study_sections import rate_sections, size_sections
from tailora.report.style import capturing
from tailora.report.tables import comparison_csv

ROLE_HOW = "A bar is a recipe's adapter, divided by what the adapted matrices do."
DEPTH_HOW = "A line follows a recipe's adapter parameters from the first layer to the last."

FOLDED_FROM = 3
"""With more combinations of task, model and budget than this, most of a section is folded away."""

DEPTH_RANKS_HOW = "A line follows a recipe's mean rank over a layer's candidates; not adapted counts as 0."
ROLE_RANKS_HOW = "A mark is a recipe's mean rank over all candidates of a role; not adapted counts as 0."


def write_report(
    path_to_runs: str | Path,
    out_html: str | Path | None = None,
    baseline: str | None = None,
    figures: str | Path | None = None,
) -> Path:
    """Write ``report.html``, and next to it ``report.md``, ``comparison.csv``, ``comparison.tex``, ``references.bib``.

    Args:
        path_to_runs: A run folder, or a folder that holds run folders, such as the output of a study.
        out_html: Where the page goes; default ``report.html`` in ``path_to_runs``.
        baseline: Recipe that the others are compared with; default the study's, else ``lora`` where it was run.
        figures: Folder for every figure as SVG and PNG; none are written when left out.

    Returns:
        The path of the page.

    Raises:
        UserError: No run was found, the baseline was not run, or ``out_html`` is a folder.
    """
    runs = load_runs(path_to_runs)
    known = sorted({run.recipe for run in runs})
    if baseline is not None and known and baseline not in known:
        raise UserError(
            f"baseline {baseline!r} was not run in {str(path_to_runs)!r}; choose one of: {', '.join(known)}"
        )
    page = page_path(Path(path_to_runs), out_html)
    check_figures_folder(figures)
    study = load_study(path_to_runs)
    if baseline is None and study is not None and study.baseline in known:
        baseline = study.baseline
    content = Content.of(runs, baseline, study)
    write_text(page.parent / "references.bib", content.bibtex)
    write_text(page.parent / "comparison.csv", comparison_csv(content.rows, content.pairs))
    write_text(page.with_suffix(".md"), render_markdown(content))
    write_text(page.parent / "comparison.tex", comparison_latex(content.rows, content.pairs))
    if figures is None:
        html = render_html(content)
    else:
        with capturing() as drawn:
            html = render_html(content)
        write_figures(figures, drawn)
    # The page last: whoever waits for it finds the others complete.
    return write_text(page, html)


def render_html(content: Content) -> str:
    """Render the page.

    Args:
        content: What the report shows.

    Returns:
        The whole HTML document.
    """
    runs, groups = content.runs, content.groups
    order = recipe_order(groups)
    return render_page(
        "report.html.j2",
        title=content.title,
        summary=content.summary,
        tables=_tables(content),
        pairs=content.pairs,
        maps=_all_maps(groups, order),
        curves=[_curves(group, f"g{number}", order) for number, group in enumerate(groups)],
        sizes=_sizes(groups, order),
        flip_limit=FLIP_LIMIT,
        flips=content.flips,
        study=content.study,
        rates=rate_sections(content, order),
        cost=content.cost,
        rate_warnings=gathered_warnings(content.rates),
        calibrations=size_sections(content, order),
        plans=[(group, _plans(group)) for group in groups],
        folds=len(groups) > FOLDED_FROM,
        runs=_run_rows(runs),
        problems=[(place_of(problem, runs), problem) for problem in runs.problems],
        provenance=provenance(runs),
        missing=[(entry.label, missing_text(entry.runs, entry.search, entry.detail)) for entry in content.missing],
        citations=citations(groups),
        bibtex=content.bibtex,
        notes=[(group.label, note) for group in groups for note in group.notes],
    )


def _tables(content: Content) -> list[dict[str, Any]]:
    """Rows and pairs by group, with which optional columns have anything to show."""
    rows, pairs = by_place(content.rows), by_place(content.pairs)
    return [
        {
            "group": group,
            "rows": rows[group.place],
            "pairs": pairs.get(group.place, []),
            "perplexity": any(row.perplexity is not None for row in rows[group.place]),
        }
        for group in content.groups
    ]


def _all_maps(groups: Sequence[Group], order: Sequence[str]) -> list[dict[str, Any]]:
    """Heat maps of all groups; a signal that several budgets share is drawn once."""
    seen: list[dict[str, float]] = []
    return [_maps(group, f"g{number}", seen, order) for number, group in enumerate(groups)]


def _maps(group: Group, prefix: str, seen: list[dict[str, float]], order: Sequence[str]) -> dict[str, Any]:
    """Rank heat maps of a group on one scale, and the signals in the same layout."""
    plans = {name: group.recipes[name][0] for name in order if name in group.recipes}
    grids = [rank_grid(run.plan) for run in plans.values()]
    largest = max(grid.largest for grid in grids)
    ranks = []
    for number, (name, run) in enumerate(plans.items()):
        # The ranks, not the plans' hashes: these also tell apart what the plans were computed from.
        dealt = {tuple(float(target["rank"]) for target in other.plan["targets"]) for other in group.recipes[name]}
        svg = rank_heat_map(run.plan, name=f"{prefix}-ranks-{number}", label=name, largest=largest)
        adapted = sum(float(target["rank"]) > 0 for target in run.plan["targets"])
        detail = f"{formats.trained(run.plan)} on {formats.plural(adapted, 'target')}"
        detail += f"; seed {run.seed}, others differ" if len(dealt) > 1 else ""
        ranks.append(card(name, f"{detail}.", svg))
    # A recipe that needs no signal may not have measured any: take each signal from the first run that has it.
    measured: dict[str, Any] = {}
    for run in plans.values():
        for name, values in run.signals.items():
            if values and values not in seen:
                measured.setdefault(name, (run, values))
    seen += [values for _, values in measured.values()]
    signals, constants = [], []
    for number, (name, (run, values)) in enumerate(sorted(measured.items())):
        shown = name.replace("_", " ")
        if len(values) > 1 and len(set(values.values())) == 1:
            # Of the whole model rather than of a target, such as newton's agreement: a map would be of one colour.
            constants.append(
                f"{shown} {formats.number(next(iter(values.values())))} (by {run.recipe}, seed {run.seed})"
            )
            continue
        svg = signal_heat_map(run.plan, values, name=f"{prefix}-signal-{number}", label=shown)
        signals.append(card(shown, f"Measured before training by {run.recipe}, seed {run.seed}.", svg))
    crowded = any(grid.crowded for grid in grids)
    width = column_width(ranks)
    return {
        "group": group,
        "ranks": ranks,
        "signals": signals,
        "constants": constants,
        "crowded": crowded,
        "width": width,
    }


def _curves(group: Group, prefix: str, order: Sequence[str]) -> dict[str, Any]:
    """Training and validation loss, and the validation score where one was logged."""
    # Called what it is: a curve over the scored examples must not pass for an independent validation.
    on_score = any(watches_score(run) for run in group.runs)
    name = "Evaluation" if on_score else "Validation"
    source = " Measured on the examples that give the final score." if on_score else ""
    thick = "the thick line is the mean over seeds, thin lines are the seeds."
    wanted = [
        ("train", "loss", "Training loss", f"Lower is better; {thick}"),
        ("eval", "loss", f"{name} loss", f"A line that rises while the training loss falls is overfitting.{source}"),
    ]
    primary = group.runs[0].primary
    if primary != "loss":
        better = "Higher" if group.runs[0].higher_is_better else "Lower"
        wanted.append(("eval", primary, f"{name} {primary}", f"{better} is better; {thick}"))
    found = []
    for split, key, title, how in wanted:
        svg = curves(
            {recipe: group.recipes[recipe] for recipe in order if recipe in group.recipes},
            split,
            key,
            name=f"{prefix}-curve-{split}-{key}",
            order=order,
        )
        if svg:
            found.append(card(title, how, svg))
    return {"group": group, "figures": found}


def _sizes(groups: Sequence[Group], order: Sequence[str]) -> list[dict[str, Any]]:
    """Per task and model the score against size over all budgets, then where each budget's parameters were spent."""
    families: dict[tuple[str, str, str], list[tuple[int, Group]]] = {}
    for number, group in enumerate(groups):
        families.setdefault((group.kind, group.task, group.model), []).append((number, group))
    entries: list[dict[str, Any]] = []
    over_all: list[dict[str, Any]] = []
    many = len(groups) > FOLDED_FROM
    for place, ((_, task, model), members) in enumerate(families.items()):
        svg = score_against_parameters([group for _, group in members], name=f"size-{place}", order=order)
        how = "A mark is a mean over seeds, its bar the range; marks of equal size stand a few pixels apart."
        if len(members) > 1:
            how += " The dashed line is the best mean at that size or below."
        spent = [(group.label, _spending(group, f"g{number}", order)) for number, group in members]
        over = f"{task}, {short_model(model)}, {len(members)} budgets" if len(members) > 1 else spent[0][0]
        first = [card(over if many else "Score against size", how, svg)] if svg else []
        if many:
            over_all += first
            entries += [{"label": label, "figures": figures, "wide": True, "fold": True} for label, figures in spent]
        elif len(members) == 1:
            entries.append({"label": over, "figures": first + spent[0][1], "wide": False, "fold": False})
        else:
            entries += [{"label": over, "figures": first, "wide": True, "fold": False}] if first else []
            entries += [{"label": label, "figures": figures, "wide": True, "fold": False} for label, figures in spent]
    score = {"label": "Score against size", "figures": over_all, "wide": True, "fold": False}
    return [score, *entries] if over_all else entries


def _spending(group: Group, prefix: str, order: Sequence[str]) -> list[dict[str, Any]]:
    """Ranks and parameters of one budget by layer and by role."""
    plans = {name: group.recipes[name][0].plan for name in order if name in group.recipes}
    drawn = [
        ("Mean rank by layer", DEPTH_RANKS_HOW, ranks_by_depth(plans, name=f"{prefix}-mean-rank-layer", order=order)),
        ("Mean rank by role", ROLE_RANKS_HOW, ranks_by_role(plans, name=f"{prefix}-mean-rank-role", order=order)),
        ("Parameters by layer", DEPTH_HOW, parameters_by_depth(plans, name=f"{prefix}-depth", order=order)),
        ("Parameters by role", ROLE_HOW, parameters_by_role(plans, name=f"{prefix}-role")),
    ]
    return [card(title, how, svg) for title, how, svg in drawn if svg]


def _plans(group: Group) -> list[dict[str, Any]]:
    """The adapted targets of every recipe's first seed."""
    entries = []
    for name in group.ordered:
        run = group.recipes[name][0]
        adapted = [target for target in run.plan["targets"] if float(target["rank"]) > 0]
        rows = [
            {
                "name": str(target["name"]),
                "role": role_of(target).title,
                "place": row_of(target).title,
                "shape": " × ".join(str(side) for side in target.get("shape") or ()),
                "rank": f"{float(target['rank']):g}",
                "alpha": formats.DASH if (alpha := finite(target.get("alpha"))) is None else f"{alpha:g}",
                "cost": formats.count(cost_of(target)),
            }
            for target in adapted
        ]
        entries.append(
            {
                "recipe": name,
                "label": group.label,
                "seed": run.seed,
                "hash": str(run.plan.get("hash") or "")[:12],
                "rows": rows,
                "idle": len(run.plan["targets"]) - len(adapted),
                "total": formats.count(finite(run.plan.get("total_params"))),
                "budget": formats.count(finite(run.plan.get("budget_params"))),
            }
        )
    return entries


def _run_rows(runs: Runs) -> list[dict[str, Any]]:
    """Every run folder, the unfinished ones included, with what is known of it."""
    searches = {id(run) for run in split_searches(runs)[1]}
    rows = [
        {
            "hash": run.hash[:12],
            "recipe": run.recipe,
            "task": run.task,
            "budget": run.budget,
            "seed": str(run.seed),
            "rate": formats.rate(run.learning_rate),
            "score": formats.score(run.score),
            "primary": run.primary,
            "train": formats.seconds(finite(run.timings.get("train_s"))),
            "status": "done, search" if id(run) in searches else "done",
            "done": True,
        }
        for run in runs
    ]
    for problem in runs.problems:
        if problem.left_out:
            training: Mapping[str, Any] = problem.config.get("training") or {}
            rate = finite(training.get("learning_rate")) if isinstance(training, Mapping) else None
            rows.append(
                {
                    "hash": (problem.hash or problem.path.name)[:12],
                    "recipe": problem.recipe or formats.DASH,
                    "task": problem.task or formats.DASH,
                    "budget": str(problem.config.get("budget") or formats.DASH),
                    "seed": str(problem.config.get("seed", formats.DASH)),
                    "rate": formats.rate(rate),
                    "score": formats.DASH,
                    "primary": "",
                    "train": formats.DASH,
                    "status": problem.status,
                    "done": False,
                }
            )
    return rows
