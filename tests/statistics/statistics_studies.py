"""Simulated studies of two equal recipes: what predictions look like when only a name differs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri


@dataclass(frozen=True)
class Setting:
    """How a simulated study is made.

    Attributes:
        seeds: Seeds of each recipe.
        examples: Examples of the test split.
        accuracy: Expected accuracy; ``None`` for losses with heavy tails.
        seeds_differ: Standard deviation of a trained model's quality, in units of the examples' difficulty.
        quirks: Standard deviation of what all models of one recipe make of an example, other than the other recipe's.
        noise: Standard deviation of what one model makes of one example.
    """

    seeds: int
    examples: int
    accuracy: float | None
    seeds_differ: float = 0.0
    quirks: float = 0.0
    noise: float = 0.5

    @property
    def binary(self) -> bool:
        return self.accuracy is not None


SETTINGS = {
    "one seed": Setting(1, 400, 0.8),
    "one seed, few flips": Setting(1, 100, 0.95, noise=0.3),
    "one seed, losses": Setting(1, 300, None),
    "two seeds": Setting(2, 100, 0.9),
    "two seeds that differ": Setting(2, 500, 0.7, seeds_differ=0.05),
    "two seeds of great difference": Setting(2, 1000, 0.6, seeds_differ=0.5),
    "three seeds": Setting(3, 500, 0.5, seeds_differ=0.03),
    "three seeds, quirks": Setting(3, 500, 0.8, seeds_differ=0.03, quirks=0.5),
    "three seeds, losses": Setting(3, 300, None, seeds_differ=0.1, quirks=0.3),
    "five seeds": Setting(5, 500, 0.85, seeds_differ=0.1),
    "five seeds, losses": Setting(5, 200, None, seeds_differ=0.02),
    "ten seeds": Setting(10, 200, 0.75, seeds_differ=0.05),
    "ten seeds, quirks": Setting(10, 200, 0.75, seeds_differ=0.05, quirks=0.5),
}


def equal_recipes(setting: Setting, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a study.

    Returns:
        Recipe and baseline, ``[seeds, examples]`` each: right (1) or wrong (0), or a loss.
    """
    difficulty = rng.normal(size=setting.examples)
    sides = []
    for _ in range(2):
        own = setting.quirks * rng.normal(size=setting.examples)
        model = setting.seeds_differ * rng.normal(size=(setting.seeds, 1))
        sides.append(difficulty + own + model + setting.noise * rng.normal(size=(setting.seeds, setting.examples)))
    if setting.accuracy is None:
        # Log-normal: one example in a hundred has a loss ten times the median.
        return np.exp(sides[0]), np.exp(sides[1])
    total = 1 + setting.quirks**2 + setting.seeds_differ**2 + setting.noise**2
    limit = ndtri(setting.accuracy) * np.sqrt(total)
    return (sides[0] < limit).astype(float), (sides[1] < limit).astype(float)
