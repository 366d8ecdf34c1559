"""Scores of weighted examples are the scores of examples written out as often as they count."""

from __future__ import annotations

import numpy as np
import pytest

from reference.statistics_slow import repeated
from tailora.evaluation import metrics
from tailora.statistics import scores


@pytest.mark.parametrize("classes", [2, 4])
def test_classes(classes):
    rng = np.random.default_rng(classes)
    labels, guesses = rng.integers(0, classes, (2, 60))
    guesses = np.where(rng.uniform(size=60) < 0.5, labels, guesses)
    weights = rng.multinomial(60, np.full(60, 1 / 60), size=5).astype(float)
    counts = scores.confusions(weights, labels, guesses, classes)
    for draw in range(5):
        pairs = list(zip(repeated(weights[draw], labels), repeated(weights[draw], guesses), strict=True))
        expected = metrics.confusion(pairs, classes)
        assert counts[draw].tolist() == expected.tolist()
        assert scores.matthews(counts)[draw] == pytest.approx(metrics.matthews(expected))
        wanted = scores.f1(counts, 1 if classes == 2 else None)[draw]
        assert wanted == pytest.approx(metrics.f1(expected))


def test_correlations_with_ties():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 50).astype(float)
    guesses = np.round(labels + rng.normal(0, 2, 50), 1)
    weights = rng.multinomial(50, np.full(50, 1 / 50), size=5).astype(float)
    for draw in range(5):
        own = repeated(weights[draw], labels), repeated(weights[draw], guesses)
        assert scores.pearson(weights, labels, guesses)[draw] == pytest.approx(metrics.pearson(*own))
        assert scores.spearman(weights, labels, guesses)[draw] == pytest.approx(metrics.spearman(*own))


def test_nothing_varies():
    weights, same = np.ones((1, 4)), np.array([1.0, 1, 1, 1])
    assert scores.pearson(weights, same, np.arange(4.0)) == 0
    assert scores.matthews(scores.confusions(weights, np.array([0, 1, 0, 1]), np.zeros(4, dtype=int), 2)) == 0
    assert scores.ratio(weights, np.zeros(4), np.zeros(4)) == 0


def test_a_ratio_by_hand():
    # Tokens 1 and 3 with losses 2 and 4: (2 + 12) / 4; the second twice: (2 + 24) / 7.
    weights = np.array([[1.0, 1], [1, 2]])
    assert scores.ratio(weights, np.array([2.0, 12]), np.array([1.0, 3])).tolist() == pytest.approx([3.5, 26 / 7])
