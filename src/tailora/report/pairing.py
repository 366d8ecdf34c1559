"""Paired differences to a baseline, and what they allow one to say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tailora.report import formats
from tailora.report.groups import Group, group_runs
from tailora.report.measures import Measure, choose_measure
from tailora.report.records import RunRecord
from tailora.statistics.intervals import LEVEL, seed_test
from tailora.statistics.paired import Effect, paired_means, paired_metric
from tailora.statistics.power import MOST_SEEDS, Spread, detectable, seeds_needed
from tailora.statistics.signflips import mcnemar, sign_flip
from tailora.statistics.tables import Ranks, average_ranks, holm

if TYPE_CHECKING:
    import numpy as np

MARGIN = 0.01
"""A difference below this is none that matters: of a score as it is, of a loss as a share of the baseline's."""

_AFFORDABLE = 10


@dataclass(frozen=True)
class PairedDifference:
    """A recipe minus the baseline on the same seeds and the same examples.

    Attributes:
        task: Name of the task.
        model: The model as configured.
        budget: The budget as written.
        recipe: The recipe.
        baseline: What it is compared with.
        quantity: What is compared: the primary score where the predictions give it, else ``accuracy`` or ``loss``.
        higher_is_better: Whether more of it is better.
        seeds: The seeds that both ran.
        examples: Number of examples that all these runs predicted.
        difference: Mean difference; ``None`` when no pairing was possible.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        p_value: Two-sided p-value of the interval's test.
        p_holm: The same after Holm's correction over all comparisons of the report.
        mde: Smallest true difference that this comparison finds with 80 % power.
        margin: Largest difference that counts as none.
        short_of: What there is too little of to find a difference of ``margin``; empty where nothing is lacking.
        seeds_needed: Seeds that find a difference of the observed size with 80 % power; ``None`` where unknown or
            beyond 1,000.
        seed_p: p-value of the paired t-test over seeds on the primary score, which takes the examples as given.
        mcnemar_p: Exact p-value of who is right more often, all seeds together; about these trained models only.
        mcnemar_by_seed: McNemar's p-value for each seed.
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
    higher_is_better: bool = True
    mde: float | None = None
    margin: float | None = None
    short_of: str = ""
    seeds_needed: int | None = None
    seed_p: float | None = None
    mcnemar_p: float | None = None
    mcnemar_by_seed: tuple[float, ...] = ()

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero also after the correction for the number of comparisons."""
        return self.excludes_zero and (self.p_holm is None or self.p_holm < 1 - LEVEL)

    @property
    def better(self) -> bool:
        """Whether the mean difference is in the recipe's favour."""
        return self.difference is not None and self.difference != 0 and (self.difference > 0) == self.higher_is_better

    @property
    def needs(self) -> str:
        """How many seeds would find a difference of the observed size, in words."""
        if self.seeds_needed is not None:
            return f"{self.seeds_needed:,}"
        return f"> {MOST_SEEDS:,}" if self.difference and len(self.seeds) > 1 else formats.DASH

    @property
    def verdict(self) -> str:
        """What the interval allows one to say."""
        if self.difference is None:
            return f"not compared: {self.reason}"
        one = len(self.seeds) == 1
        if self.excludes_zero:
            word = "better" if self.better else "worse"
            if not self.clear:
                return f"{word}, but not after correcting for the number of comparisons"
            # One seed measures the examples' noise and nothing of the training's.
            return f"{word} for this one seed" if one else word
        if self.mde is None:
            return "no difference shown"
        least = f"±{formats.score(self.mde)}"
        if self.short_of:
            start = "one seed, and " if one else ""
            return f"{start}too few {self.short_of} to tell: only beyond {least} would a difference show"
        if self.mde == 0:
            return "no difference at all" + (" for this one seed" if one else "")
        seed = " for this one seed" if one else ""
        return f"no difference{seed}: beyond {least} it would have shown"


@dataclass(frozen=True)
class Standing:
    """How a recipe does over all places (task, model, budget) of a report.

    Attributes:
        recipe: The recipe.
        wins: Places where it is better than the baseline, corrected for the number of comparisons.
        ties: Places where neither is.
        losses: Places where it is worse.
        rank: Average rank of its mean score, 1 the best; ``None`` where it did not run everywhere.
    """

    recipe: str
    wins: int
    ties: int
    losses: int
    rank: float | None


class Pairs(list[PairedDifference]):
    """The paired differences of a report, with what they add up to.

    Attributes:
        ranks: Average ranks over the places that all recipes ran in, with Friedman's test.
    """

    def __init__(self, pairs: Iterable[PairedDifference] = (), ranks: Ranks | None = None):
        """Hold the pairs and the ranks."""
        super().__init__(pairs)
        self.ranks = ranks

    @property
    def standings(self) -> list[Standing]:
        """One entry per recipe, best average rank first; empty with fewer than two places to compare in."""
        if len({(pair.task, pair.model, pair.budget) for pair in self}) < 2:
            return []
        ranks = self.ranks.average if self.ranks else {}
        found = []
        for name in dict.fromkeys([*ranks, *(pair.recipe for pair in self)]):
            own = [pair for pair in self if pair.recipe == name and pair.difference is not None]
            wins = sum(pair.clear and pair.better for pair in own)
            losses = sum(pair.clear and not pair.better for pair in own)
            found.append(Standing(name, wins, len(own) - wins - losses, losses, ranks.get(name)))
        return sorted(found, key=lambda entry: (entry.rank is None, entry.rank or 0.0, -entry.wins, entry.recipe))

    @property
    def friedman(self) -> str:
        """What the average ranks rest on, and what Friedman's test says of them."""
        if self.ranks is None:
            return ""
        start = f"Average ranks over {formats.plural(self.ranks.blocks, 'place')}"
        if self.ranks.p_value is None:
            return f"{start}, too few for a test."
        value = "p < 0.001" if self.ranks.p_value < 0.001 else f"p = {self.ranks.p_value:.3f}"
        return f"{start}; Friedman's test that all recipes rank alike: {value}."


def paired_differences(runs: Iterable[RunRecord], baseline: str | None = None, seed: int = 0) -> Pairs:
    """Compare every recipe with its group's baseline, example by example and seed by seed.

    Args:
        runs: Finished runs.
        baseline: Recipe to compare with; default ``lora`` where it was run.
        seed: Seed of the private random generator.

    Returns:
        One entry per recipe other than the baseline; a list that also knows ranks and standings.
    """
    groups = group_runs(runs, baseline)
    rows = []
    for group in groups:
        base = group.recipes[group.baseline]
        rows += [
            _pair(group, name, members, base, seed) for name, members in group.recipes.items() if name != group.baseline
        ]
    corrected = holm([row.p_value for row in rows])
    means = [{name: fmean(run.score for run in own) for name, own in group.recipes.items()} for group in groups]
    ranks = average_ranks(means, [group.runs[0].higher_is_better for group in groups])
    return Pairs([replace(row, p_holm=p_holm) for row, p_holm in zip(rows, corrected, strict=True)], ranks)


def _pair(
    group: Group, recipe: str, members: Sequence[RunRecord], base: Sequence[RunRecord], seed: int
) -> PairedDifference:
    """Pair two recipes of a group; an impossible pairing becomes a reason, not an error."""
    import numpy as np

    ours, theirs = ({run.seed: run for run in side} for side in (members, base))
    seeds = tuple(sorted(set(ours) & set(theirs)))
    sides = [[side[number] for number in seeds] for side in (ours, theirs)]
    kept = [*sides[0], *sides[1]]
    measure = choose_measure(kept or [*members, *base])
    empty = PairedDifference(group.task, group.model, group.budget, recipe, group.baseline, measure.quantity, seeds)
    empty = replace(empty, higher_is_better=measure.higher_is_better)
    if not seeds:
        return replace(empty, reason="the two recipes share no seed")
    rows = _aligned(kept, measure)
    if isinstance(rows, str):
        return replace(empty, reason=rows)
    rng = np.random.default_rng([seed, len(rows[0])])
    effect, level = _effect(rows, measure, len(seeds), rng)
    margin = MARGIN * (abs(level) if measure.quantity == "loss" else 1.0)
    mde = detectable(effect.spread)
    return replace(
        empty,
        examples=len(rows[0]),
        difference=effect.difference,
        low=effect.low,
        high=effect.high,
        p_value=effect.p_value,
        mde=mde,
        margin=margin,
        short_of=_short_of(effect.spread, mde, margin),
        seeds_needed=seeds_needed(effect.spread, effect.difference),
        seed_p=seed_test([run.score for run in sides[0]], [run.score for run in sides[1]]),
        **_mcnemar(rows, len(seeds)),
    )


def _short_of(spread: Spread, mde: float, margin: float) -> str:
    """Say what there should be more of: seeds, examples where no number of seeds would do, or both."""
    if mde <= margin:
        return ""
    if spread.seeds < 2:
        return "examples"
    if detectable(spread, seeds=MOST_SEEDS) <= margin:
        return "seeds"
    return "seeds and examples" if detectable(spread, seeds=max(_AFFORDABLE, spread.seeds)) < mde / 2 else "examples"


def _effect(
    rows: Sequence[Sequence[dict[str, Any]]], measure: Measure, seeds: int, rng: np.random.Generator
) -> tuple[Effect, float]:
    """Return the difference, and the baseline's mean."""
    import numpy as np

    if measure.value is not None:
        values = np.array([[measure.value(row) for row in own] for own in rows], dtype=float)
        return paired_means(values[:seeds] - values[seeds:], rng), float(values[seeds:].mean())
    score = measure.score
    assert score is not None

    def replicate(weights: np.ndarray) -> np.ndarray:
        found = np.stack([score(weights, own) for own in rows], axis=1)
        return found[:, :seeds] - found[:, seeds:]

    both = [[*own, *other] for own, other in zip(rows[:seeds], rows[seeds:], strict=True)]

    def swap(changed: np.ndarray) -> np.ndarray:
        # Both sides' rows in one table: a side is the rows that count once in it.
        kept = np.concatenate([~changed, changed], axis=1).astype(float)
        return np.stack([score(kept, pair) - score(1 - kept, pair) for pair in both], axis=1)

    whole = np.ones((1, len(rows[0])))
    return paired_metric(replicate, swap, len(rows[0]), rng), float(
        np.mean([score(whole, own) for own in rows[seeds:]])
    )


def _mcnemar(rows: Sequence[Sequence[dict[str, Any]]], seeds: int) -> dict[str, Any]:
    """McNemar's p-values, where every example is right or wrong."""
    import numpy as np

    flags = [[row.get("correct") for row in own] for own in rows]
    if not all(isinstance(flag, bool) for own in flags for flag in own):
        return {}
    values = np.array(flags, dtype=np.int64)
    gains = values[:seeds] - values[seeds:]
    each = tuple(mcnemar(int((own > 0).sum()), int((own < 0).sum())) for own in gains)
    return {"mcnemar_p": each[0] if seeds == 1 else sign_flip(gains.sum(axis=0)), "mcnemar_by_seed": each}


def _aligned(runs: Sequence[RunRecord], measure: Measure) -> list[list[dict[str, Any]]] | str:
    """Return every run's rows of the examples that all of them have, in one order, or why that cannot be."""
    tables = [_by_example(run, measure) for run in runs]
    known = [table for table in tables if table is not None]
    if len(known) < len(tables):
        what = {"accuracy": "correct"}.get(measure.quantity, measure.quantity)
        return f"a run lacks per-example {what}, or lists an example twice"
    common = sorted(set.intersection(*(set(table) for table in known)))
    if len(common) < 2:
        return "the runs share no example" if not common else "the runs share one example only"
    if any(table[index].get("label") != known[0][index].get("label") for table in known for index in common):
        return "the runs disagree about the labels of their examples; was the test split another?"
    return [[table[index] for index in common] for table in known]


def _by_example(run: RunRecord, measure: Measure) -> dict[str, dict[str, Any]] | None:
    """Map example index to its row; ``None`` when the predictions cannot be paired."""
    table: dict[str, dict[str, Any]] = {}
    for row in run.predictions:
        index = str(row.get("index"))
        if "index" not in row or index in table or (measure.value is not None and measure.value(row) is None):
            return None
        table[index] = row
    return table or None
