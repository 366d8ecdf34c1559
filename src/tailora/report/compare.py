"""The comparison table: means over seeds. Paired differences to a baseline are in ``pairing``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from tailora.report.groups import Group, group_runs
from tailora.report.pairing import PairedDifference, Pairs, paired_differences
from tailora.report.records import Problem, RunRecord, finite
from tailora.statistics.intervals import LEVEL, seed_interval

__all__ = ["LEVEL", "ComparisonRow", "PairedDifference", "Pairs", "compare_runs", "paired_differences", "seed_interval"]


@dataclass(frozen=True)
class ComparisonRow:
    """One line of the comparison table: a recipe on a task, model and budget.

    Attributes:
        task: Name of the task.
        model: The model as configured.
        budget: The budget as written.
        recipe: The recipe.
        seeds: The seeds that finished.
        left_out: Runs of this recipe that failed or did not finish.
        learning_rate: Learning rate, where all seeds share one.
        primary: Name of the primary score.
        higher_is_better: Whether a larger primary score is better.
        score: Mean of the primary score over seeds.
        score_min: Lowest seed.
        score_max: Highest seed.
        score_std: Standard deviation over seeds; ``None`` for one seed.
        score_low: Lower end of the 95 % interval of the mean over seeds (Student's t); ``None`` for one seed.
        score_high: Its upper end.
        loss: Mean loss over seeds, where reported.
        perplexity: Mean perplexity over seeds, where reported.
        adapter_params: Trainable adapter parameters.
        base_share: Adapter parameters in percent of the base model's.
        head_params: Task-head parameters, the same for every recipe.
        train_s: Mean training seconds.
        peak_memory_mb: Largest peak memory over seeds.
        best: Whether no recipe of the group has a better mean.
        baseline: Whether this is the recipe that the others are compared with.
    """

    task: str
    model: str
    budget: str
    recipe: str
    seeds: tuple[int, ...]
    left_out: int
    learning_rate: float | None
    primary: str
    higher_is_better: bool
    score: float
    score_min: float
    score_max: float
    score_std: float | None
    score_low: float | None
    score_high: float | None
    loss: float | None
    perplexity: float | None
    adapter_params: int | None
    base_share: float | None
    head_params: int | None
    train_s: float | None
    peak_memory_mb: float | None
    best: bool
    baseline: bool


def compare_runs(
    runs: Iterable[RunRecord], baseline: str | None = None, problems: Sequence[Problem] = ()
) -> list[ComparisonRow]:
    """Build the comparison table.

    Args:
        runs: Finished runs.
        baseline: Recipe to compare with; default ``lora`` where it was run.
        problems: Left-out runs, counted next to the seeds of their recipe; default: the runs' own ``problems``.

    Returns:
        Rows in the order of the groups, best mean score first within each.
    """
    problems = problems or getattr(runs, "problems", ())
    return [
        _row(group, recipe, members, problems)
        for group in group_runs(runs, baseline)
        for recipe, members in group.recipes.items()
    ]


def _mean(values: Iterable[Any]) -> float | None:
    """Mean of the numbers; ``None`` unless every run has one, so that all columns speak of the same runs."""
    numbers = [finite(value) for value in values]
    known = [number for number in numbers if number is not None]
    return fmean(known) if known and len(known) == len(numbers) else None


def _row(group: Group, recipe: str, members: Sequence[RunRecord], problems: Sequence[Problem]) -> ComparisonRow:
    scores = [run.score for run in members]
    interval = seed_interval(scores)
    first = members[0]
    params = _mean(run.adapter_params for run in members)
    base = first.base_params
    heads = _mean(run.counts.get("head_params") for run in members)
    memory = [value for run in members if (value := finite(run.timings.get("peak_memory_mb"))) is not None]
    rates = {run.learning_rate for run in members}
    own = (first.recipe, group.task, group.budget, group.model)
    left_out = (
        0
        if recipe != first.recipe
        else sum(item.left_out and item.status != "copy" and _identity(item) == own for item in problems)
    )
    best = next(iter(group.recipes.values()))
    return ComparisonRow(
        task=group.task,
        model=group.model,
        budget=group.budget,
        recipe=recipe,
        seeds=tuple(run.seed for run in members),
        left_out=left_out,
        learning_rate=rates.pop() if len(rates) == 1 else None,
        primary=first.primary,
        higher_is_better=first.higher_is_better,
        score=fmean(scores),
        score_min=min(scores),
        score_max=max(scores),
        score_std=stdev(scores) if len(scores) > 1 else None,
        score_low=interval[0] if interval else None,
        score_high=interval[1] if interval else None,
        loss=_mean(run.scores.get("loss") for run in members),
        perplexity=_mean(run.scores.get("perplexity") for run in members),
        adapter_params=None if params is None else round(params),
        base_share=100 * params / base if params is not None and base else None,
        head_params=None if heads is None else round(heads),
        train_s=_mean(run.timings.get("train_s") for run in members),
        peak_memory_mb=max(memory, default=None),
        best=len(group.recipes) > 1 and fmean(scores) == fmean(run.score for run in best),
        baseline=recipe == group.baseline,
    )


def _identity(problem: Problem) -> tuple[str, str, str, str]:
    """Recipe, task, budget and model of a left-out run, as far as they are known."""
    config = problem.config
    return (problem.recipe, problem.task, str(config.get("budget") or ""), str(config.get("model") or ""))
