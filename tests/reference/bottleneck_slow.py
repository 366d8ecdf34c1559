"""A bottleneck adapter written out value by value, in float64."""

from __future__ import annotations

import math

import torch


def gelu_tanh(value):
    return 0.5 * value * (1 + math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))


def relu(value):
    return max(value, 0.0)


def adapter(y, down, down_bias, up, up_bias, act, scaling=1.0, norm=None, eps=1e-5):
    """Return ``y + scaling * up(act(down(norm(y))))`` for one vector ``y``, from nested loops over its values."""
    inner = [float(value) for value in y]
    if norm is not None:
        mean = sum(inner) / len(inner)
        variance = sum((value - mean) ** 2 for value in inner) / len(inner)
        weight, bias = norm
        inner = [
            (v - mean) / math.sqrt(variance + eps) * float(weight[i]) + float(bias[i]) for i, v in enumerate(inner)
        ]
    small = []
    for row in range(down.shape[0]):
        total = sum(float(down[row, i]) * inner[i] for i in range(len(inner)))
        small.append(act(total + (float(down_bias[row]) if down_bias is not None else 0.0)))
    result = []
    for row in range(up.shape[0]):
        total = sum(float(up[row, i]) * small[i] for i in range(len(small)))
        total += float(up_bias[row]) if up_bias is not None else 0.0
        result.append(float(y[row]) + scaling * total)
    return torch.tensor(result, dtype=torch.float64)
