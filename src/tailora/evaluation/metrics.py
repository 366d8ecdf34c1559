"""Scores of a list of predictions: F1, Matthews, Pearson, Spearman and ROUGE-L.

Each one is a few lines over counts, tested against scikit-learn (which Tailora does not require) or a plain loop.
Where a score is undefined because the predictions do not vary, it is 0: no relation was shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def confusion(pairs: Sequence[tuple[int, int]], classes: int) -> np.ndarray:
    """Count how often each class was taken for each.

    Args:
        pairs: True and predicted class number of each example.
        classes: How many classes there are.

    Returns:
        Integers ``[classes, classes]``: true class, predicted class.
    """
    import numpy as np

    labels, predictions = np.asarray(pairs, dtype=np.int64).T
    cells = labels * classes + predictions
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def f1(counts: np.ndarray) -> float:
    """Return the F1 of the second class for two classes, and the mean over the classes that occur otherwise.

    Args:
        counts: A ``confusion`` table.

    Returns:
        Between 0 and 1.
    """
    import numpy as np

    hits = np.diag(counts).astype(float)
    sizes = (counts.sum(axis=0) + counts.sum(axis=1)).astype(float)
    each = np.divide(2 * hits, sizes, out=np.zeros_like(hits), where=sizes > 0)
    return float(each[1]) if len(each) == 2 else float(each[sizes > 0].mean())


def micro_f1(counts: np.ndarray, outside: int | None) -> float:
    """Return the F1 over all classes but one, every prediction weighing the same.

    Args:
        counts: A ``confusion`` table.
        outside: The class that means "nothing here"; ``None`` counts every class.

    Returns:
        Between 0 and 1; 0 where there is nothing to find and nothing was found.
    """
    import numpy as np

    inside = [number for number in range(len(counts)) if number != outside]
    hits = float(np.diag(counts)[inside].sum())
    total = float(counts[inside].sum() + counts[:, inside].sum())
    return 2 * hits / total if total else 0.0


def matthews(counts: np.ndarray) -> float:
    """Return the Matthews correlation of labels and predictions, for two or more classes.

    Args:
        counts: A ``confusion`` table.

    Returns:
        Between -1 and 1; 0 where the labels or the predictions are all the same.
    """
    import numpy as np

    truth, predicted = counts.sum(axis=1).astype(float), counts.sum(axis=0).astype(float)
    size = float(counts.sum())
    covariance = float(np.trace(counts)) * size - float(truth @ predicted)
    spread = (size**2 - float(truth @ truth)) * (size**2 - float(predicted @ predicted))
    return covariance / spread**0.5 if spread > 0 else 0.0


def pearson(labels: Sequence[float], predictions: Sequence[float]) -> float:
    """Return the linear correlation; 0 where either side does not vary."""
    from scipy import stats

    if not _vary(labels, predictions):
        return 0.0
    result: Any = stats.pearsonr(labels, predictions)
    return float(result.statistic)


def spearman(labels: Sequence[float], predictions: Sequence[float]) -> float:
    """Return the rank correlation; 0 where either side does not vary."""
    from scipy import stats

    if not _vary(labels, predictions):
        return 0.0
    result: Any = stats.spearmanr(labels, predictions)
    return float(result.statistic)


def rouge_l(reference: str, candidate: str) -> float:
    """Return ROUGE-L: the F1 of the longest common subsequence of words.

    Words are runs of letters and digits in lower case, without stemming.

    Args:
        reference: The text that is wanted.
        candidate: The text that was generated.

    Returns:
        Between 0 and 1; 1 where neither text has a word.
    """
    wanted, found = _words(reference), _words(candidate)
    if not wanted or not found:
        return float(wanted == found)
    common = longest_common_subsequence(wanted, found)
    return 2 * common / (len(wanted) + len(found))


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest sequence of words that both hold in this order, not necessarily adjacent."""
    best = [0] * (len(second) + 1)
    for word in first:
        corner = 0
        for column, other in enumerate(second, 1):
            above = best[column]
            best[column] = corner + 1 if word == other else max(above, best[column - 1])
            corner = above
    return best[-1]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _vary(*columns: Sequence[float]) -> bool:
    return all(min(column) < max(column) for column in columns)
