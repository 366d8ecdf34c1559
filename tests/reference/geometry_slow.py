"""Slow, obvious float64 twins of the geometry routines, written from the formulae."""

from __future__ import annotations

import math

import numpy as np


def neighbours(points, k):
    """Distances and indices of the k nearest other points, by differences with every point."""
    points = np.asarray(points, dtype=np.float64)
    distances, indices = [], []
    for i in range(len(points)):
        row = [(math.sqrt(math.fsum((points[i] - points[j]) ** 2)), j) for j in range(len(points)) if j != i]
        row = sorted(row)[:k]
        distances.append([d for d, _ in row])
        indices.append([j for _, j in row])
    return np.array(distances), np.array(indices)


def twonn(points, discard=0.1, fit="linear", cdf="i/N"):
    """TwoNN (Facco et al. 2017), step by step."""
    distances, _ = neighbours(points, 2)
    ratios = sorted(r2 / r1 for r1, r2 in distances if r1 > 0)
    n = len(ratios)
    kept = math.floor(n * (1 - discard) + 1e-9)
    logs = [math.log(mu) for mu in ratios]
    if fit == "mle":
        return (kept - 1) / (math.fsum(logs[:kept]) + (n - kept) * logs[kept - 1])
    top = bottom = 0.0
    for i in range(1, kept + 1):
        below = (i if cdf == "i/N" else i - 1) / n
        if below < 1:
            top += logs[i - 1] * -math.log(1 - below)
            bottom += logs[i - 1] ** 2
    return top / bottom


def linear_std_error(n, kept):
    """Spread of the linear fit at d = 1 for N independent ratios, by the delta method written out as a double sum."""
    y = [-math.log(1 - i / n) for i in range(1, kept + 1)]
    variance = 0.0
    for m in range(1, kept + 1):
        weight = sum(y[i - 1] for i in range(m, kept + 1)) / (n - m + 1)
        variance += weight**2
    return math.sqrt(variance) / sum(v * v for v in y)


def levina_bickel(points, k):
    """Levina and Bickel's estimate with the inverses averaged (MacKay and Ghahramani)."""
    distances, _ = neighbours(points, k)
    inverses = []
    for row in distances:
        if row[0] > 0:
            inverses.append(sum(math.log(row[k - 1] / row[j]) for j in range(k - 1)) / (k - 1))
    return 1 / (math.fsum(inverses) / len(inverses))


def local_pca(points, k, threshold):
    """Mean number of local covariance eigenvalues above a share of the largest."""
    points = np.asarray(points, dtype=np.float64)
    distances, indices = neighbours(points, k)
    found = []
    for i, row in enumerate(indices):
        if distances[i][0] > 0:
            values = np.linalg.eigvalsh(np.cov(points[[i, *row]].T))
            found.append(int((values > threshold * values.max()).sum()))
    return sum(found) / len(found)
