"""Slow twins of the statistics: one draw, one example, one sign at a time, in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy import stats


def means_by_loop(differences: np.ndarray, rng: np.random.Generator, resamples: int) -> dict[str, float]:
    """The hierarchical bootstrap of ``paired_means`` with loops, and draws of its own.

    Only for numbers that are no whole steps, since the exact test of those is left out.
    """
    seeds, examples = differences.shape
    mean = sum(sum(row) for row in differences) / (seeds * examples)
    by_seed = [sum(row) / examples for row in differences]
    by_example = [sum(differences[s][e] for s in range(seeds)) / seeds for e in range(examples)]
    variance_examples = sum((value - mean) ** 2 for value in by_example) / (examples - 1) / examples
    between = noise = 0.0
    if seeds > 1:
        between = sum((value - mean) ** 2 for value in by_seed) / (seeds - 1)
        square = 0.0
        for s in range(seeds):
            for e in range(examples):
                square += (differences[s][e] - by_seed[s] - by_example[e] + mean) ** 2
        noise = square / ((seeds - 1) * (examples - 1)) / examples
    shared = max(0.0, variance_examples - noise / seeds)
    examples_only, both = [], []
    for _ in range(resamples):
        total = 0.0
        for _ in range(examples):
            total += by_example[int(rng.integers(examples))]
        moved = (total / examples - mean) * math.sqrt(examples / rng.chisquare(examples - 1))
        examples_only.append(mean + moved)
        if seeds > 1:
            kept = math.sqrt(shared / variance_examples)
            both.append(mean + kept * moved + math.sqrt(between / seeds) * rng.standard_t(seeds - 1))
    halves = [examples_only, both] if seeds > 1 else [examples_only]
    lows, highs, values = [], [], []
    for draws in halves:
        lows.append(float(np.quantile(draws, 0.025)))
        highs.append(float(np.quantile(draws, 0.975)))
        below = sum(draw <= 0 for draw in draws)
        values.append(2 * min(below, resamples - below) / resamples)
    return {"mean": mean, "low": min(lows), "high": max(highs), "p": max(values), "between": between, "noise": noise}


def sign_flip_by_enumeration(totals: list[int]) -> float:
    """Try every combination of signs."""
    wanted, hits, number = abs(sum(totals)), 0, 0
    for signs in itertools.product((-1, 1), repeat=len(totals)):
        number += 1
        hits += abs(sum(sign * total for sign, total in zip(signs, totals, strict=True))) >= wanted
    return hits / number


def holm_by_hand(values: list[float]) -> list[float]:
    """Multiply the smallest p-value by m, the next by m - 1, never going down, never above 1."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found, running = [0.0] * len(values), 0.0
    for step, place in enumerate(order):
        running = max(running, min(1.0, values[place] * (len(values) - step)))
        found[place] = running
    return found


def rejections(true: float, between: float, noise: float, seeds: int, examples: int, studies: int) -> float:
    """How often a paired t-test over seeds finds a true difference, by drawing the seeds' means."""
    rng = np.random.default_rng(3)
    means = true + rng.normal(0, math.sqrt(between + noise**2 / examples), (studies, seeds))
    return float(np.mean(stats.ttest_1samp(means, 0.0, axis=1).pvalue < 0.05))


def repeated(weights: np.ndarray, values: list) -> list:
    """Every value as often as its weight says."""
    return [value for value, times in zip(values, weights.astype(int), strict=True) for _ in range(times)]
