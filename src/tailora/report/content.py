"""Everything a report shows, computed once, and its Markdown rendering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tailora.report import formats
from tailora.report.compare import ComparisonRow, PairedDifference, compare_runs, paired_differences
from tailora.report.groups import Group, group_runs, short_model
from tailora.report.records import Problem, Runs
from tailora.report.summary import summarise
from tailora.report.tables import comparison_markdown, escape_markdown, markdown_table, paired_markdown


@dataclass(frozen=True)
class Content:
    """Everything the page and its companions show, computed once.

    Attributes:
        runs: The runs and their problems.
        groups: The runs by task, model and budget.
        rows: The comparison table.
        pairs: The paired differences.
        summary: The summary, one sentence an entry.
    """

    runs: Runs
    groups: list[Group]
    rows: list[ComparisonRow]
    pairs: list[PairedDifference]
    summary: list[str]

    @classmethod
    def of(cls, runs: Runs, baseline: str | None = None) -> Content:
        """Compute the content of a report.

        Args:
            runs: What ``load_runs`` returned.
            baseline: Recipe that the others are compared with; default ``lora`` where it was run.

        Returns:
            The content.
        """
        groups, pairs = group_runs(runs, baseline), paired_differences(runs, baseline)
        return cls(runs, groups, compare_runs(runs, baseline), pairs, summarise(groups, pairs, runs.problems))

    @property
    def title(self) -> str:
        """Heading of the report."""
        tasks = list(dict.fromkeys(group.task for group in self.groups))
        if not tasks:
            return "Tailora report"
        return f"Tailora report: {formats.series(tasks) if len(tasks) <= 3 else f'{len(tasks)} tasks'}"


def render_markdown(content: Content) -> str:
    """Render the report's words and tables as Markdown.

    Args:
        content: What the report shows.

    Returns:
        Markdown text.
    """
    runs, groups = content.runs, content.groups
    parts = [f"# {escape_markdown(content.title)}", escape_markdown(" ".join(content.summary))]
    if content.rows:
        parts += ["## Comparison", comparison_markdown(content.rows).rstrip()]
    notes = [f"- {escape_markdown(f'{group.label}: {note}')}" for group in groups for note in group.notes]
    parts += ["\n".join(notes)] if notes else []
    if content.pairs:
        parts += ["## Paired differences to the baseline", paired_markdown(content.pairs).rstrip()]
    cited = [f"- {escape_markdown(recipe)}: {escape_markdown(text)}" for recipe, text in citations(groups)]
    parts += ["## Citations", "\n".join(cited)] if cited else []
    seen = [[escape_markdown(key), escape_markdown(value)] for key, value in provenance(runs)]
    parts += ["## Provenance", markdown_table(["what", "value"], seen, left=2).rstrip()] if seen else []
    if runs.problems:
        found = [
            "- " + escape_markdown(f"{place_of(problem, runs)} ({problem.status}): {problem.reason}")
            for problem in runs.problems
        ]
        parts += ["## Left out or incomplete", "\n".join(found)]
    return "\n\n".join(parts) + "\n"


def provenance(runs: Runs) -> list[tuple[str, str]]:
    """Return what the runs' environments say, each key with all its distinct values.

    Args:
        runs: Finished runs.

    Returns:
        Key and text, sorted by key.
    """
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in {"model": _model_name(run.model), **run.environment}.items():
            text = readable(value)
            values.setdefault(key, {}).setdefault(text if len(text) <= 600 else f"{text[:600]}…")
    return [(key, "; ".join(found)) for key, found in sorted(values.items())]


def readable(value: Any) -> str:
    """Write a value of an environment or a profile as words instead of JSON."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {readable(inner)}" for key, inner in sorted(value.items())) or "none"
    if isinstance(value, list):
        return ", ".join(map(readable, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return formats.number(value) if isinstance(value, float) else str(value)


def _model_name(model: str) -> str:
    """Return a hub id as it is, and of a folder the part that tells the model."""
    is_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    return model if is_id else short_model(model)


def place_of(problem: Problem, runs: Runs) -> str:
    """Return a problem's folder, relative to the searched path where it lies below it."""
    if runs.root is not None and problem.path != runs.root and problem.path.is_relative_to(runs.root):
        return str(problem.path.relative_to(runs.root))
    return str(problem.path)


def citations(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Return recipe and citation of every recipe that has one."""
    found = {run.recipe: run.citation for group in groups for run in group.runs if run.citation}
    return sorted(found.items())
