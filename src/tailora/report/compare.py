"""Means over seeds, and paired differences to a baseline with an interval that admits what it does not show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from tailora.report.groups import Group, group_runs
from tailora.report.records import Problem, RunRecord, finite

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.95
RESAMPLES = 5000
_CHUNK = 4_000_000


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


@dataclass(frozen=True)
class PairedDifference:
    """A recipe minus the baseline on the same seeds and the same examples.

    Attributes:
        task: Name of the task.
        model: The model as configured.
        budget: The budget as written.
        recipe: The recipe.
        baseline: What it is compared with.
        quantity: What is compared per example, ``accuracy`` or ``loss``.
        seeds: The seeds that both ran.
        examples: Number of examples that all these runs predicted.
        difference: Mean difference; ``None`` when no pairing was possible.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        p_value: Two-sided bootstrap p-value.
        p_holm: The same after Holm's correction over all comparisons of the report.
        reason: Why nothing could be compared; empty otherwise.
    """

    task: str
    model: str
    budget: str
    recipe: str
    baseline: str
    quantity: str
    seeds: tuple[int, ...] = ()
    examples: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_holm: float | None = None
    reason: str = ""

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def verdict(self) -> str:
        """What the interval allows one to say."""
        if self.difference is None:
            return f"not compared: {self.reason}"
        if not self.excludes_zero:
            return "no difference shown"
        word = "better" if (self.difference > 0) == (self.quantity == "accuracy") else "worse"
        if self.p_holm is not None and self.p_holm >= 1 - LEVEL:
            return f"{word}, but not after correcting for the number of comparisons"
        # One seed measures the examples' noise and nothing of the training's.
        return f"{word} for this one seed" if len(self.seeds) == 1 else word


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


def paired_differences(runs: Iterable[RunRecord], baseline: str | None = None, seed: int = 0) -> list[PairedDifference]:
    """Compare every recipe with its group's baseline, example by example and seed by seed.

    Args:
        runs: Finished runs.
        baseline: Recipe to compare with; default ``lora`` where it was run.
        seed: Seed of the private random generator.

    Returns:
        One entry per recipe other than the baseline.
    """
    rows = []
    for group in group_runs(runs, baseline):
        base = group.recipes[group.baseline]
        rows += [
            _pair(group, name, members, base, seed) for name, members in group.recipes.items() if name != group.baseline
        ]
    return _holm(rows)


def bootstrap_interval(
    differences: np.ndarray, rng: np.random.Generator, level: float = LEVEL, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """Return an interval for the mean of per-example differences, and a two-sided p-value.

    Examples are resampled with replacement. Two or three seeds cannot be resampled to any use (half of all draws from
    two seeds are one seed twice), so the seeds' share of the variance, what remains of the spread of the seeds' means
    once the spread expected from the examples alone is taken off, enters as a draw from Student's t.

    Args:
        differences: Array ``[seeds, examples]``, recipe minus baseline.
        rng: Private generator.
        level: Coverage of the interval.
        resamples: Number of bootstrap draws.

    Returns:
        Low end, high end, p-value.
    """
    import numpy as np

    seeds, examples = differences.shape
    per_example = differences.mean(axis=0)
    rows = max(1, _CHUNK // examples)
    draws = np.concatenate(
        [
            per_example[rng.integers(0, examples, size=(min(rows, resamples - start), examples))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    if seeds > 1:
        means = differences.mean(axis=1)
        residual = differences - means[:, None] - per_example[None, :] + means.mean()
        noise = (residual**2).sum() / ((seeds - 1) * max(1, examples - 1)) / examples
        between = max(0.0, float(means.var(ddof=1)) - float(noise))
        draws = draws + np.sqrt(between / seeds) * rng.standard_t(seeds - 1, size=resamples)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    tail = 1 + min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return float(low), float(high), min(1.0, 2 * tail / (resamples + 1))


def seed_interval(scores: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Return an interval for the mean over seeds: ``mean ± t s / sqrt(n)``, t from Student with n - 1 degrees.

    Args:
        scores: One score per seed.
        level: Coverage of the interval, for scores that scatter normally.

    Returns:
        Low end and high end, which may lie outside the range that a score can have; ``None`` for one seed.
    """
    if len(scores) < 2:
        return None
    from scipy.special import stdtrit

    reach = float(stdtrit(len(scores) - 1, (1 + level) / 2)) * stdev(scores) / math.sqrt(len(scores))
    return fmean(scores) - reach, fmean(scores) + reach


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


def _pair(
    group: Group, recipe: str, members: Sequence[RunRecord], base: Sequence[RunRecord], seed: int
) -> PairedDifference:
    """Pair two recipes of a group; an impossible pairing becomes a reason, not an error."""
    import numpy as np

    ours, theirs = ({run.seed: run for run in side} for side in (members, base))
    seeds = tuple(sorted(set(ours) & set(theirs)))
    kept = [run for number in seeds for run in (ours[number], theirs[number])]
    use_accuracy = group.kind != "causal-lm" and all(
        isinstance(row.get("correct"), bool) for run in kept for row in run.predictions
    )
    key = "correct" if use_accuracy else "loss"
    empty = PairedDifference(
        group.task, group.model, group.budget, recipe, group.baseline, "accuracy" if use_accuracy else "loss", seeds
    )
    if not seeds:
        return replace(empty, reason="the two recipes share no seed")
    tables = {id(run): _by_example(run, key) for run in kept}
    if any(table is None for table in tables.values()):
        return replace(empty, reason=f"a run lacks per-example {key}, or lists an example twice")
    known = [table for table in tables.values() if table is not None]
    common = sorted(set.intersection(*(set(table) for table in known)))
    if not common:
        return replace(empty, reason="the runs share no example")
    if any(table[index][1] != known[0][index][1] for table in known for index in common):
        return replace(
            empty, reason="the runs disagree about the labels of their examples; was the test split another?"
        )
    values = {name: np.array([table[index][0] for index in common]) for name, table in tables.items() if table}
    differences = np.stack([values[id(ours[number])] - values[id(theirs[number])] for number in seeds])
    low, high, p_value = bootstrap_interval(differences, np.random.default_rng([seed, len(common)]))
    return replace(
        empty, examples=len(common), difference=float(differences.mean()), low=low, high=high, p_value=p_value
    )


def _by_example(run: RunRecord, key: str) -> dict[str, tuple[float, Any]] | None:
    """Map example index to its value and label; ``None`` when the predictions cannot be paired."""
    table: dict[str, tuple[float, Any]] = {}
    for row in run.predictions:
        value = float(row[key]) if isinstance(row.get(key), bool) else finite(row.get(key))
        index = str(row.get("index"))
        if value is None or "index" not in row or index in table:
            return None
        table[index] = (value, row.get("label"))
    return table or None


def _holm(rows: list[PairedDifference]) -> list[PairedDifference]:
    """Add Holm's correction over everything that was compared."""
    tested = sorted((row.p_value, place) for place, row in enumerate(rows) if row.p_value is not None)
    result, running = list(rows), 0.0
    for order, (p_value, place) in enumerate(tested):
        running = max(running, min(1.0, p_value * (len(tested) - order)))
        result[place] = replace(result[place], p_holm=running)
    return result
