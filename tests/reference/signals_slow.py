"""Slow, obvious float64 forms of the profile's signals, from lists of per-example matrices or of vectors."""

from __future__ import annotations

import math

import torch


def mean_gradient(examples, i):
    """Mean over examples of target i's gradient, one matrix per expert."""
    return [sum(e[i][k] for e in examples) / len(examples) for k in range(len(examples[0][i]))]


def gradient_norm(examples, i):
    """Frobenius norm of the mean gradient."""
    return math.sqrt(sum(float((m**2).sum()) for m in mean_gradient(examples, i)))


def sensitivity(examples, i, weights):
    """Mean over elements of |W * G|."""
    total = sum(float((w * m).abs().sum()) for w, m in zip(weights, mean_gradient(examples, i), strict=True))
    return total / sum(w.numel() for w in weights)


def fisher_lora_b(examples, i, a):
    """Mean over examples of the squared norm of G A^T."""
    return sum(float(((m @ a.T) ** 2).sum()) for e in examples for m in e[i]) / len(examples)


def batch_b_squares(parts, i, a):
    """Squares of every batch's mean gradient of B, averaged over the batches; one matrix per expert."""
    means = [mean_gradient(part, i) for part in parts]
    return [torch.stack([(mean[k] @ a.T) ** 2 for mean in means]).mean(0) for k in range(len(means[0]))]


def cross_spectrum(one, two, i):
    """Directions of each half's mean gradient measured on the other's; one expert."""
    values = []
    for chosen, measured in ((one, two), (two, one)):
        u, _, vh = torch.linalg.svd(mean_gradient(chosen, i)[0], full_matrices=False)
        g = mean_gradient(measured, i)[0]
        values.append([float(u[:, k] @ g @ vh[k]) for k in range(len(vh))])
    return [(x + y) / 2 for x, y in zip(*values, strict=True)]


def second_moment(vectors):
    """Mean over vectors of v v^T."""
    return sum(torch.outer(v, v) for v in vectors) / len(vectors)


def explained_variance(vectors):
    """Eigenvalues of the covariance over their sum, descending."""
    stacked = torch.stack(list(vectors))
    centred = stacked - stacked.mean(0)
    values = torch.linalg.svdvals(centred) ** 2
    return values / (centred**2).sum()


def weight_snr(weight):
    """Spectrum's ratio, step by step."""
    values = sorted((float(s) for s in torch.linalg.svdvals(weight)), reverse=True)
    ordered = torch.tensor(sorted(values), dtype=torch.float64)
    sigma = float(torch.quantile(ordered, 0.75) - torch.quantile(ordered, 0.25)) / 1.349
    edge = sigma * (1 + math.sqrt(min(weight.shape) / max(weight.shape)))
    signal = sum(v for v in values if v > edge)
    noise = sum(v for v in values if v <= edge)
    return (signal / noise if noise else signal) / values[0]


def adapter_output_norm(vectors, adapters):
    """Mean over vectors of the squared length of the sum of s * (B (A x) + b), one product at a time."""
    total = 0.0
    adapters = [(a.tolist(), b.tolist(), None if c is None else c.tolist(), s) for a, b, c, s in adapters]
    for x in (vector.tolist() for vector in vectors):
        added = [0.0] * len(adapters[0][1])
        for a, b, bias, scaling in adapters:
            low = [sum(a[k][j] * x[j] for j in range(len(x))) for k in range(len(a))]
            for i in range(len(added)):
                high = sum(b[i][k] * low[k] for k in range(len(low)))
                added[i] += scaling * (high + (0.0 if bias is None else bias[i]))
        total += sum(value**2 for value in added)
    return total / len(vectors)
