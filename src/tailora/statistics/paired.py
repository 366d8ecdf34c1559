"""Paired differences of two recipes over the same seeds and examples: interval, p-value, and what it rests on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailora.statistics.intervals import LEVEL
from tailora.statistics.power import Spread
from tailora.statistics.signflips import sign_flip

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 5000
METRIC_RESAMPLES = 2000
_CHUNK = 4_000_000
# With fewer draws than this beyond zero, their share says little about how small a p-value is.
_FEW = 10


@dataclass(frozen=True)
class Effect:
    """A mean paired difference.

    Attributes:
        difference: The mean over seeds.
        low: Lower end of the interval.
        high: Upper end.
        p_value: Two-sided; at least 0.05 exactly where a 95 % interval holds zero.
        spread: The variances behind it.
    """

    difference: float
    low: float
    high: float
    p_value: float
    spread: Spread


def paired_means(
    differences: np.ndarray, rng: np.random.Generator, level: float = LEVEL, resamples: int = RESAMPLES
) -> Effect:
    """Compare two recipes by the mean of a number that every example has, such as right or wrong, or its loss.

    A hierarchical bootstrap. Examples are resampled with replacement. Two or three seeds cannot be resampled to any use
    (half of all draws from two seeds are one seed twice), so they enter as a draw from Student's t with their number
    less one degrees of freedom, scaled by the spread of their means, to which only that part of the examples' variance
    is added which all seeds share. The interval also holds the one that resamples examples alone: means that agree by
    luck do not make it narrower than the examples allow. Where the interval would exclude zero, so must a test that
    gives every example's difference a random sign: exact for right and wrong (``sign_flip``), and for losses a guard
    against their heavy tails, for which resampled intervals are too short.

    Args:
        differences: ``[seeds, examples]``, recipe minus baseline.
        rng: Private generator.
        level: Coverage of the interval.
        resamples: Number of bootstrap draws.

    Returns:
        Mean, interval, p-value and variances.

    Raises:
        ValueError: There are fewer than two examples.
    """
    import numpy as np

    seeds, examples = differences.shape
    if examples < 2:
        raise ValueError(f"one example cannot be resampled, and there are {examples}")
    per_example = differences.mean(axis=0)
    mean = float(per_example.mean())
    rows = max(1, _CHUNK // examples)
    draws = _in_pieces(
        lambda n: per_example[rng.integers(0, examples, size=(n, examples))].mean(axis=1), resamples, rows
    )
    by_examples = float(per_example.var(ddof=1)) / examples
    between = noise = 0.0
    if seeds > 1:
        means = differences.mean(axis=1)
        between = float(means.var(ddof=1))
        residual = differences - means[:, None] - per_example[None, :] + mean
        noise = float((residual**2).sum()) / ((seeds - 1) * (examples - 1)) / examples
    spread = _spread(seeds, examples, between, noise, by_examples)
    result = _combine(mean, draws - mean, spread, rng, level)
    whole = differences if seeds == 1 else differences.sum(axis=0)[None, :]
    steps = np.rint(whole)
    if np.abs(whole - steps).max() < 1e-9 and np.abs(steps).max() <= seeds:
        return _no_surer_than(result, sign_flip(steps[0].astype(np.int64)), level)
    flipped = _in_pieces(lambda n: (1.0 - 2.0 * rng.integers(0, 2, size=(n, examples))) @ per_example, resamples, rows)
    return _unless_by_chance(result, flipped / examples, level)


def paired_metric(
    replicate: Callable[[np.ndarray], np.ndarray],
    swap: Callable[[np.ndarray], np.ndarray],
    examples: int,
    rng: np.random.Generator,
    level: float = LEVEL,
    resamples: int = METRIC_RESAMPLES,
) -> Effect:
    """Compare two recipes by a score of all examples together that is no mean over them, such as Matthews.

    As ``paired_means``, with the score computed anew on every resample instead of a mean. In place of the exact test of
    right and wrong stands a randomisation test: were the recipes equal, an example's predictions could as well have
    been the other recipe's (Edgington, *Randomization Tests*; Yeh, COLING 2000, for F1 and its like).

    Args:
        replicate: Takes how often each example counts ``[draws, examples]`` and returns each seed's difference of the
            scores, ``[draws, seeds]``.
        swap: Takes which examples' predictions change sides, booleans ``[draws, examples]``, and returns the same.
        examples: Number of examples.
        rng: Private generator.
        level: Coverage of the interval.
        resamples: Number of bootstrap draws.

    Returns:
        Mean, interval, p-value and variances.

    Raises:
        ValueError: There are fewer than two examples.
    """
    import numpy as np

    if examples < 2:
        raise ValueError(f"one example cannot be resampled, and there are {examples}")
    own = replicate(np.ones((1, examples)))[0]
    seeds, mean = len(own), float(own.mean())
    rows = max(1, _CHUNK // (examples * 4))
    chances = np.full(examples, 1 / examples)
    drawn = _in_pieces(lambda n: replicate(rng.multinomial(examples, chances, size=n).astype(float)), resamples, rows)
    # What seeds share moves their replicates together; what they do not share averages out over them.
    by_examples = float(drawn.mean(axis=1).var(ddof=1)) * examples / (examples - 1)
    between = noise = 0.0
    if seeds > 1:
        between = float(own.var(ddof=1))
        each = float(drawn.var(axis=0, ddof=1).mean()) * examples / (examples - 1)
        noise = max(0.0, (each - by_examples) * seeds / (seeds - 1))
    spread = _spread(seeds, examples, between, noise, by_examples)
    result = _combine(mean, drawn.mean(axis=1) - mean, spread, rng, level)
    swapped = _in_pieces(
        lambda n: swap(rng.integers(0, 2, size=(n, examples)).astype(bool)).mean(axis=1), resamples, rows
    )
    return _unless_by_chance(result, swapped, level)


def _in_pieces(draw: Callable[[int], np.ndarray], resamples: int, rows: int) -> np.ndarray:
    """Join what ``draw`` returns for so many draws at a time, few enough to bound memory."""
    import numpy as np

    return np.concatenate([draw(min(rows, resamples - start)) for start in range(0, resamples, rows)])


def _spread(seeds: int, examples: int, between: float, noise: float, by_examples: float) -> Spread:
    """Split the variance under resampled examples into what seeds share and the noise of each."""
    noise = min(noise, by_examples * seeds)
    return Spread(seeds, examples, between, noise, max(0.0, by_examples - noise / seeds))


def _combine(mean: float, moved: np.ndarray, spread: Spread, rng: np.random.Generator, level: float) -> Effect:
    """Build the interval and the p-value from how far the resampled examples move the mean."""
    import numpy as np
    from scipy.special import stdtr

    examples, seeds = spread.examples, spread.seeds
    # A resample is narrower than the truth by (n - 1) / n, and its spread is an estimate like any other.
    moved = moved * np.sqrt(examples / rng.chisquare(examples - 1, size=len(moved)))
    halves = [mean + moved]
    exact = [2 * float(stdtr(examples - 1, -abs(mean) / spread.by_examples**0.5)) if spread.by_examples else None]
    if seeds > 1:
        kept = (spread.shared / spread.by_examples) ** 0.5 if spread.by_examples else 0.0
        own = (spread.between / seeds) ** 0.5
        halves.append(mean + kept * moved + own * rng.standard_t(seeds - 1, size=len(moved)))
        exact.append(_tails(mean, own, spread.shared**0.5, seeds))
    ends = np.quantile(np.array(halves), [(1 - level) / 2, (1 + level) / 2], axis=1)
    p_value = max(_p_value(half, known) for half, known in zip(halves, exact, strict=True))
    return _no_surer_than(Effect(mean, float(ends[0].min()), float(ends[1].max()), p_value, spread), p_value, level)


def _p_value(draws: np.ndarray, known: float | None) -> float:
    """Return twice the share of draws beyond zero, or, far out where hardly any are, what the variances say."""
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    counted = min(1.0, 2 * (1 + tail) / (len(draws) + 1))
    if tail >= _FEW or known is None:
        return counted
    # Both ends keep the p-value in step with the draws: no larger than theirs, no jump at the tenth.
    return min(counted, known)


def _tails(mean: float, own: float, shared: float, seeds: int) -> float | None:
    """Return ``P(|own t + shared z| >= |mean|)``, the sum of Student's t and a normal as Behrens and Fisher have it."""
    import numpy as np
    from scipy.special import ndtri, stdtr

    if own == 0:
        return None
    normal = ndtri((np.arange(400) + 0.5) / 400)
    return 2 * float(stdtr(seeds - 1, -(abs(mean) - shared * normal) / own).mean())


def _unless_by_chance(effect: Effect, draws: np.ndarray, level: float) -> Effect:
    """Hold a result against differences that are up to chance."""
    import numpy as np

    as_far = int((np.abs(draws) >= abs(effect.difference) * (1 - 1e-9)).sum())
    # Far out the share of draws is all that this test can say; the bootstrap's own p-value goes on from there.
    if as_far < _FEW:
        return effect
    return _no_surer_than(effect, min(1.0, (1 + as_far) / (1 + len(draws))), level)


def _no_surer_than(effect: Effect, p_value: float, level: float) -> Effect:
    """Raise the p-value to one that another valid test gives, and let the interval say the same."""
    p_value = max(effect.p_value, p_value)
    low, high = effect.low, effect.high
    if p_value >= 1 - level:
        low, high = min(low, 0.0), max(high, 0.0)
    return Effect(effect.difference, low, high, p_value, effect.spread)
