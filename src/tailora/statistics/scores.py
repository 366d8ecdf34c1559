"""Scores of weighted examples: the metrics that are no mean over examples, for many resamples at once.

The same formulas as ``evaluation.metrics``, with how often every example counts. Where a score is undefined because
nothing varies, it is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def confusions(weights: np.ndarray, labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Count how often each class was taken for each.

    Args:
        weights: How often each example counts, ``[draws, examples]``.
        labels: Class numbers ``[examples]``.
        predictions: Class numbers ``[examples]``.
        classes: Number of classes.

    Returns:
        ``[draws, classes, classes]``: true class, predicted class.
    """
    import numpy as np

    cells = np.zeros((len(labels), classes * classes))
    cells[np.arange(len(labels)), labels * classes + predictions] = 1
    return (weights @ cells).reshape(-1, classes, classes)


def matthews(counts: np.ndarray) -> np.ndarray:
    """Return the Matthews correlation for two or more classes.

    Args:
        counts: ``[draws, classes, classes]`` from ``confusions``.

    Returns:
        ``[draws]``, between -1 and 1.
    """
    import numpy as np

    truth, predicted = counts.sum(axis=2), counts.sum(axis=1)
    size = truth.sum(axis=1)
    covariance = np.trace(counts, axis1=1, axis2=2) * size - (truth * predicted).sum(axis=1)
    square = (size**2 - (truth**2).sum(axis=1)) * (size**2 - (predicted**2).sum(axis=1))
    return _ratio(covariance, np.sqrt(np.maximum(square, 0)))


def f1(counts: np.ndarray, positive: int | None = None) -> np.ndarray:
    """Return the F1 of one class, or its mean over the classes that occur.

    Args:
        counts: ``[draws, classes, classes]`` from ``confusions``.
        positive: The class; ``None`` for the mean.

    Returns:
        ``[draws]``, between 0 and 1.
    """
    import numpy as np

    hits = np.diagonal(counts, axis1=1, axis2=2)
    sizes = counts.sum(axis=1) + counts.sum(axis=2)
    each = _ratio(2 * hits, sizes)
    return each[:, positive] if positive is not None else each.sum(axis=1) / (sizes > 0).sum(axis=1)


def ratio(weights: np.ndarray, parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Return a sum over examples divided by another: the loss per token, the F1 over all tags.

    Args:
        weights: How often each example counts, ``[draws, examples]``.
        parts: What an example adds above the line, ``[examples]``.
        wholes: What it adds below, ``[examples]``.

    Returns:
        ``[draws]``.
    """
    return _ratio(weights @ parts, weights @ wholes)


def pearson(weights: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Return the linear correlation.

    Args:
        weights: How often each example counts, ``[draws, examples]``.
        labels: ``[examples]``, or ``[draws, examples]`` where they differ from draw to draw.
        predictions: The same for the predictions.

    Returns:
        ``[draws]``, between -1 and 1.
    """
    import numpy as np

    size = weights.sum(axis=1, keepdims=True)
    left = labels - (weights * labels).sum(axis=1, keepdims=True) / size
    right = predictions - (weights * predictions).sum(axis=1, keepdims=True) / size
    square = (weights * left**2).sum(axis=1) * (weights * right**2).sum(axis=1)
    return _ratio((weights * left * right).sum(axis=1), np.sqrt(square))


def ranked(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return every example's rank in every draw, equal values sharing the mean of theirs.

    Args:
        weights: How often each example counts, ``[draws, examples]``.
        values: ``[examples]``.

    Returns:
        ``[draws, examples]``.
    """
    import numpy as np

    order = np.argsort(values, kind="stable")
    _, starts, inverse = np.unique(values[order], return_index=True, return_inverse=True)
    ties = np.add.reduceat(weights[:, order], starts, axis=1)
    middles = np.cumsum(ties, axis=1) - (ties - 1) / 2
    ranks = np.empty_like(weights)
    ranks[:, order] = middles[:, inverse]
    return ranks


def spearman(weights: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Return the rank correlation, ranks taken anew in every draw.

    Args:
        weights: How often each example counts, ``[draws, examples]``.
        labels: ``[examples]``.
        predictions: ``[examples]``.

    Returns:
        ``[draws]``, between -1 and 1.
    """
    return pearson(weights, ranked(weights, labels), ranked(weights, predictions))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.divide(above, below, out=np.zeros_like(above, dtype=float), where=below > 0)
