"""What a comparison could have shown: the minimum detectable effect, and the seeds that an effect needs."""

from __future__ import annotations

from dataclasses import dataclass

from tailora.statistics.intervals import LEVEL

POWER = 0.8
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Spread:
    """Where the variance of a mean paired difference comes from.

    Attributes:
        seeds: Number of seeds.
        examples: Number of examples.
        between: Variance over seeds of a seed's mean difference, the examples' noise included; 0 for one seed.
        noise: What the examples' noise alone adds to ``between``: differences of single examples from seed to seed.
        shared: Variance of the mean difference that all seeds share because they share their examples; more seeds do
            not lower it. For one seed it holds the noise too, since nothing tells the two apart.
    """

    seeds: int
    examples: int
    between: float
    noise: float
    shared: float

    @property
    def by_examples(self) -> float:
        """Variance of the mean difference with these seeds' models, examples resampled."""
        return self.shared + self.noise / self.seeds


def noncentrality(degrees: float, power: float = POWER, level: float = LEVEL) -> float:
    """Return how many standard errors an effect must be away from zero to be found with the given power.

    Args:
        degrees: Degrees of freedom of the t-test, not necessarily whole.
        power: Chance to reject.
        level: Coverage of the interval that must exclude zero.

    Returns:
        The noncentrality of the t distribution whose share ``power`` lies beyond the two-sided critical value (the
        other tail, below 0.001 of it, left out); 2.80 for many degrees.
    """
    from scipy.optimize import brentq
    from scipy.special import nctdtr, ndtri, stdtrit

    critical = float(stdtrit(degrees, (1 + level) / 2))
    if degrees > 1e5:
        return critical + float(ndtri(power))
    found = brentq(lambda shift: float(nctdtr(degrees, shift, critical)) - (1 - power), 0.0, 3 * critical + 3)
    return float(found)  # pyright: ignore[reportArgumentType]


def detectable(spread: Spread, power: float = POWER, seeds: int | None = None) -> float:
    """Return the smallest true difference that the paired test finds with the given power.

    Both halves of the test (``paired``) must reject, so the larger of the two halves' effects counts. The seeds'
    variance is taken to be no less than the examples' noise, which two or three seeds can show by luck.

    Args:
        spread: The variances that were seen.
        power: Chance to reject.
        seeds: Another number of seeds with the same variances; default those that were run.

    Returns:
        The effect, in the unit of the difference.
    """
    seeds = spread.seeds if seeds is None else seeds
    by_examples = spread.shared + spread.noise / seeds
    found = by_examples**0.5 * noncentrality(spread.examples - 1, power)
    if spread.seeds < 2:
        return found
    own = max(spread.between, spread.noise) / seeds
    total = own + spread.shared
    if total == 0:
        return 0.0
    # Welch and Satterthwaite: the degrees of freedom of a sum of two estimated variances.
    degrees = total**2 / (own**2 / (seeds - 1) + spread.shared**2 / (spread.examples - 1))
    return max(found, total**0.5 * noncentrality(degrees, power))


def seeds_needed(spread: Spread, effect: float, power: float = POWER) -> int | None:
    """Return with how many seeds a true difference of this size would be found.

    Args:
        spread: The variances that were seen.
        effect: The difference, of either sign.
        power: Chance to reject.

    Returns:
        At least 2; ``None`` where one seed shows no spread to reckon with, and where not even 1,000 seeds would do on
        these examples.
    """
    if spread.seeds < 2 or effect == 0 or detectable(spread, power, MOST_SEEDS) > abs(effect):
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        if detectable(spread, power, middle) > abs(effect):
            low = middle
        else:
            high = middle
    return high
