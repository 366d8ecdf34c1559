"""Metrics against scikit-learn, scipy and slow loops."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from tailora.evaluation import metrics


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_f1_and_matthews_against_scikit_learn(classes, seed):
    scores = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    draw = np.random.default_rng(seed)
    # Few rows: some class is missing now and then.
    labels, predictions = draw.integers(classes, size=(2, 6 + 10 * seed)).tolist()
    counts = metrics.confusion(list(zip(labels, predictions, strict=True)), classes)
    assert counts.tolist() == scores.confusion_matrix(labels, predictions, labels=range(classes)).tolist()
    average = "binary" if classes == 2 else "macro"
    assert metrics.f1(counts) == pytest.approx(scores.f1_score(labels, predictions, average=average, zero_division=0))
    assert metrics.matthews(counts) == pytest.approx(scores.matthews_corrcoef(labels, predictions))
    inside = range(1, classes)
    expected = scores.f1_score(labels, predictions, labels=inside, average="micro", zero_division=0)
    assert metrics.micro_f1(counts, 0) == pytest.approx(expected)


def test_what_does_not_vary_shows_no_relation():
    assert metrics.matthews(metrics.confusion([(0, 1), (1, 1), (1, 1)], 2)) == 0
    assert metrics.pearson([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == 0
    assert metrics.spearman([1.0, 1.0], [2.0, 3.0]) == 0
    assert metrics.f1(metrics.confusion([(0, 0), (0, 0)], 2)) == 0
    assert metrics.micro_f1(metrics.confusion([(0, 0), (0, 0)], 2), 0) == 0


def test_correlations_by_hand():
    labels, predictions = [1.0, 2.0, 3.0, 5.0], [10.0, 20.0, 25.0, 24.0]
    assert metrics.pearson(labels, predictions) == pytest.approx(np.corrcoef(labels, predictions)[0, 1])
    assert metrics.spearman(labels, predictions) == pytest.approx(0.8)
    assert metrics.matthews(metrics.confusion([(0, 1), (1, 0), (0, 1), (1, 0)], 2)) == pytest.approx(-1)


def test_longest_common_subsequence_against_all_subsequences():
    draw = random.Random(0)
    for _ in range(60):
        first, second = (tuple(draw.choices("abc", k=draw.randrange(7))) for _ in range(2))
        all_of = {part for size in range(len(second) + 1) for part in itertools.combinations(second, size)}
        slow = max(
            size for size in range(len(first) + 1) if any(p in all_of for p in itertools.combinations(first, size))
        )
        assert metrics.longest_common_subsequence(first, second) == slow


@pytest.mark.parametrize(
    ("reference", "candidate", "score"),
    [
        ("the cat sat", "The cat, sat!", 1.0),
        ("the cat sat", "sat the cat", 2 / 3),
        ("a b c d", "a c", 2 * 2 / 6),
        ("a", "b", 0.0),
        ("a", "", 0.0),
        ("", "", 1.0),
    ],
)
def test_rouge_l(reference, candidate, score):
    assert metrics.rouge_l(reference, candidate) == pytest.approx(score)
