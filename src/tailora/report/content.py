"""Everything a report shows, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tailora.report import formats
from tailora.report.bibtex import Entry, bibliography, entries_for, known_entry
from tailora.report.calibration_sizes import SizeCurve, size_curves
from tailora.report.compare import ComparisonRow, PairedDifference, compare_runs, paired_differences
from tailora.report.flips import Flips, flipped
from tailora.report.groups import Group, group_runs, short_model
from tailora.report.learning_rates import Cost, RateFamily, rate_families, search_cost
from tailora.report.records import Problem, Runs
from tailora.report.study import Missing, Study, missing_runs, strangers
from tailora.report.summary import summarise


@dataclass(frozen=True)
class Content:
    """Everything the page and its companions show, computed once.

    Attributes:
        runs: The runs and their problems.
        groups: The runs by task, model and budget.
        rows: The comparison table.
        pairs: The paired differences.
        summary: The summary, one sentence an entry.
        rates: Score against learning rate, by group.
        cost: What the search for learning rates cost.
        sizes: Score against calibration size, by group.
        flips: Per-example disagreements, by group.
        study: The study that the runs belong to, where the folder says.
        missing: Runs of the study that are not there.
    """

    runs: Runs
    groups: list[Group]
    rows: list[ComparisonRow]
    pairs: list[PairedDifference]
    summary: list[str]
    rates: list[RateFamily] = field(default_factory=list)
    cost: Cost = field(default_factory=lambda: Cost(0, None, None))
    sizes: list[tuple[Group, list[SizeCurve]]] = field(default_factory=list)
    flips: list[tuple[Group, list[Flips]]] = field(default_factory=list)
    study: Study | None = None
    missing: list[Missing] = field(default_factory=list)

    @classmethod
    def of(cls, runs: Runs, baseline: str | None = None, study: Study | None = None) -> Content:
        """Compute the content of a report.

        Args:
            runs: What ``load_runs`` returned.
            baseline: Recipe that the others are compared with; default ``lora`` where it was run.
            study: The study that the runs belong to.

        Returns:
            The content.
        """
        groups, pairs = group_runs(runs, baseline), paired_differences(runs, baseline)
        cost, missing = search_cost(runs), missing_runs(study, runs)
        summary = summarise(groups, pairs, runs.problems)
        summary += [cost.sentence] if cost.runs else []
        summary += _progress(study, runs, missing)
        sized = [(group, size_curves(runs, group)) for group in groups]
        return cls(
            runs=runs,
            groups=groups,
            rows=compare_runs(runs, baseline),
            pairs=pairs,
            summary=summary,
            rates=rate_families(runs, groups),
            cost=cost,
            sizes=[(group, curves) for group, curves in sized if curves],
            flips=[(group, entries) for group in groups if (entries := flipped(group))],
            study=study,
            missing=missing,
        )

    @property
    def title(self) -> str:
        """Heading of the report."""
        if self.study:
            return self.study.title or f"Study {self.study.name}"
        tasks = list(dict.fromkeys(group.task for group in self.groups))
        if not tasks:
            return "Tailora report"
        return f"Tailora report: {formats.series(tasks) if len(tasks) <= 3 else f'{len(tasks)} tasks'}"

    @property
    def references(self) -> list[Entry]:
        """Sources of the recipes and of the statistics that the report shows."""
        found = [entry for _, _, entries in citations(self.groups) for entry in entries]
        if any(pair.p_holm is not None for pair in self.pairs):
            found.append(known_entry("holm1979simple"))
        if any(pair.mcnemar_p is not None for pair in self.pairs):
            found.append(known_entry("mcnemar1947note"))
        return found

    @property
    def bibtex(self) -> str:
        """The references as a ``.bib`` file."""
        return bibliography(self.references)


def _progress(study: Study | None, runs: Runs, missing: Sequence[Missing]) -> list[str]:
    """Say how much of a study is there, and what is there that is none of its own."""
    if study is None:
        return []
    told = []
    lacking = sum(entry.runs for entry in missing)
    if lacking:
        told.append(
            f"The study is not complete: {lacking:,} of its {formats.plural(len(study.expected), 'run')} "
            f"{'is' if lacking == 1 else 'are'} missing."
        )
    if extra := strangers(study, runs):
        verb = "does" if extra == 1 else "do"
        told.append(f"{formats.plural(extra, 'run')} here {verb} not belong to the study as its file is now.")
    return told


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


def citations(groups: Sequence[Group]) -> list[tuple[str, str, list[Entry]]]:
    """Return recipe, citation and its BibTeX entries for every recipe that has a citation."""
    found = {run.recipe: run.citation for group in groups for run in group.runs if run.citation}
    return [(recipe, citation, entries_for(recipe, citation)) for recipe, citation in sorted(found.items())]
