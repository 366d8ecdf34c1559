"""The report's words and tables as Markdown."""

from __future__ import annotations

from tailora.report import formats
from tailora.report.calibration_sizes import SizeCurve, SizePoint
from tailora.report.content import Content, citations, place_of, provenance
from tailora.report.flips import Flips
from tailora.report.groups import Group
from tailora.report.learning_rates import Cost, RateFamily, gathered_warnings, percent_of
from tailora.report.tables import (
    comparison_markdown,
    escape_markdown,
    markdown_table,
    paired_markdown,
    range_text,
)


def render_markdown(content: Content) -> str:
    """Render the report's words and tables as Markdown.

    Args:
        content: What the report shows.

    Returns:
        Markdown text.
    """
    runs, groups = content.runs, content.groups
    parts = [f"# {escape_markdown(content.title)}"]
    parts += [escape_markdown(f"Study {content.study.name}.")] if content.study else []
    parts.append(escape_markdown(" ".join(content.summary)))
    if content.rows:
        parts += ["## Comparison", comparison_markdown(content.rows).rstrip()]
    notes = [f"- {escape_markdown(f'{group.label}: {note}')}" for group in groups for note in group.notes]
    parts += ["\n".join(notes)] if notes else []
    if content.pairs:
        parts += ["## Paired differences to the baseline", paired_markdown(content.pairs).rstrip()]
    parts += _rates(content)
    parts += _sizes(content)
    parts += _disagreements(content)
    cited = [
        "- " + escape_markdown(f"{recipe}: {text}") + f" ({', '.join(f'`{entry.key}`' for entry in entries)})"
        for recipe, text, entries in citations(groups)
    ]
    parts += ["## Citations", "\n".join(cited), "`references.bib` holds the BibTeX."] if cited else []
    seen = [[escape_markdown(key), escape_markdown(value)] for key, value in provenance(runs)]
    parts += ["## Provenance", markdown_table(["what", "value"], seen, left=2).rstrip()] if seen else []
    parts += _problems(content)
    return "\n\n".join(parts) + "\n"


def _rates(content: Content) -> list[str]:
    if not content.rates:
        return []
    parts = ["## Learning rates", *([content.cost.sentence] if content.cost.runs else [])]
    for family in content.rates:
        parts.append(f"{escape_markdown(family.group.label)}: {escape_markdown(rates_explained(family))}")
        head = ["recipe", "shown rate", family.primary, "tried", "runs", "training", "of all training"]
        body = [[escape_markdown(cell) for cell in row] for row in rate_rows(family, content.cost)]
        parts.append(markdown_table([escape_markdown(cell) for cell in head], body).rstrip())
    notes = [f"- {escape_markdown(note)}" for note in gathered_warnings(content.rates)]
    return [*parts, "\n".join(notes)] if notes else parts


def rates_explained(family: RateFamily) -> str:
    """Say what the scores of a family of rates are, and who chose."""
    if family.searched:
        return "Scores on a validation split that was carved out of the training data; the final runs took the best."
    data = "the validation split" if family.group.task.endswith("(validation)") else "the test data"
    return f"Scores on {data} itself, not of a search: whoever picks a rate from them reports too good a score."


def rate_rows(family: RateFamily, cost: Cost) -> list[list[str]]:
    """Return the cells of the table of learning rates.

    Args:
        family: The curves of one task, model and budget.
        cost: What all training took.

    Returns:
        Per recipe: name, rate, score there, rates tried, runs, training time, its share of all training.
    """
    return [
        [
            curve.recipe,
            formats.rate(curve.marked) + (f" ({curve.edge} tried)" if family.searched and curve.edge else ""),
            formats.score(curve.score),
            ", ".join(map(formats.rate, curve.grid)),
            str(curve.runs),
            formats.seconds(curve.train_s),
            percent_of(curve.train_s, cost.total_s),
        ]
        for curve in family.curves
    ]


def _sizes(content: Content) -> list[str]:
    if not content.sizes:
        return []
    parts = ["## Calibration size"]
    for group, curves in content.sizes:
        parts.append(escape_markdown(group.label))
        head = ["recipe", "examples", "seeds", curves[0].primary, "95 % interval", "rank correlation", "elsewhere"]
        body = [[escape_markdown(cell) for cell in row] for row in size_rows(curves)]
        parts.append(markdown_table([escape_markdown(cell) for cell in head], body).rstrip())
        notes = [f"- {escape_markdown(note)}" for curve in curves for note in curve.notes]
        parts += ["\n".join(notes)] if notes else []
    return parts


def size_rows(curves: list[SizeCurve]) -> list[list[str]]:
    """Return the cells of the table of calibration sizes.

    Args:
        curves: The curves of one task, model and budget.

    Returns:
        Per recipe and size: name, examples, seeds, mean score, interval, rank correlation with the largest
        calibration, share of the parameters that lie elsewhere.
    """

    def row(curve: SizeCurve, point: SizePoint) -> list[str]:
        return [
            curve.recipe,
            formats.count(point.size),
            str(len(point.scores)),
            formats.score(point.mean),
            range_text(point.low, point.high),
            formats.DASH if point.correlation is None else f"{point.correlation:.2f}".replace("-", formats.MINUS),
            formats.DASH if point.moved is None else f"{100 * point.moved:.1f} %",
        ]

    return [row(curve, point) for curve in curves for point in curve.points]


def _disagreements(content: Content) -> list[str]:
    if not content.flips:
        return []
    head = ["task, model, budget", "recipe", "against", "both right", "only the recipe", "only the baseline"]

    def row(group: Group, entry: Flips) -> list[str]:
        counts = (entry.both_right, entry.gained, entry.lost, entry.both_wrong)
        names = (group.label, entry.recipe, entry.baseline)
        return [*map(escape_markdown, names), *map(formats.count, counts), str(len(entry.seeds))]

    body = [row(group, entry) for group, entries in content.flips for entry in entries]
    table = markdown_table([*head, "both wrong", "seeds"], body, left=3).rstrip()
    return ["## Agreement by example", "Examples times seeds.", table]


def _problems(content: Content) -> list[str]:
    found = [
        "- " + escape_markdown(f"{place_of(problem, content.runs)} ({problem.status}): {problem.reason}")
        for problem in content.runs.problems
    ]
    found += [
        "- " + escape_markdown(f"{entry.label} (missing): {missing_text(entry.runs, entry.search, entry.detail)}")
        for entry in content.missing
    ]
    return ["## Left out or incomplete", "\n".join(found)] if found else []


def missing_text(runs: int, search: bool, detail: str) -> str:
    """Write how many runs of the study are missing, and which."""
    kind = "search run" if search else "run"
    return f"{formats.plural(runs, kind)}{f', {detail}' if detail else ''}"
