"""One layer of UniPELT written out from its formulas, one example, position by position, in float64.

Matrices are lists of rows, as PyTorch stores a linear layer: ``y_i = sum_j W_ij x_j + b_i``.
"""

from __future__ import annotations

import math


def linear(x, weight, bias=None):
    return [
        sum(float(w) * v for w, v in zip(row, x, strict=True)) + (float(bias[i]) if bias is not None else 0.0)
        for i, row in enumerate(weight)
    ]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def gates(states, weight, bias, kind, real):
    """Return one gate per position: its own, or the mean over the real ones."""
    own = [sigmoid(linear(state, weight, bias)[0]) for state in states]
    if kind == "token":
        return own
    seen = [g for g, counts in zip(own, real, strict=True) if counts]
    return [sum(seen) / len(seen)] * len(own)


def gated_lora(states, weight, bias, a, b, gate):
    """Return ``W x + bias + g B A x`` for every position."""
    found = []
    for x, g in zip(states, gate, strict=True):
        part = linear(linear(x, a), b)
        found.append([y + g * p for y, p in zip(linear(x, weight, bias), part, strict=True)])
    return found


def gated_adapter(states, down, down_bias, up, up_bias, act, gate):
    """Return ``y + g up(act(down(y)))`` for every position."""
    found = []
    for y, g in zip(states, gate, strict=True):
        part = linear([act(v) for v in linear(y, down, down_bias)], up, up_bias)
        found.append([v + g * p for v, p in zip(y, part, strict=True)])
    return found


def projected(table, first, first_bias, second, second_bias):
    """Return the prefix that a table makes through ``second tanh(first e)``."""
    return [linear([math.tanh(v) for v in linear(row, first, first_bias)], second, second_bias) for row in table]


def attention(queries, keys, values, prefix_keys, prefix_values, gate, heads, key_heads, sees):
    """Return attention's output per position, heads side by side.

    The prefix of the position t is ``g_t K`` and ``g_t V``; ``sees(t, s)`` says whether t may look at the token s.
    """
    width = len(queries[0]) // heads
    found = []
    for t, query in enumerate(queries):
        row = []
        for head in range(heads):
            mine = slice((head // (heads // key_heads)) * width, (head // (heads // key_heads) + 1) * width)
            q = query[head * width : (head + 1) * width]
            pairs = [
                ([gate[t] * v for v in k[mine]], [gate[t] * v for v in value[mine]])
                for k, value in zip(prefix_keys, prefix_values, strict=True)
            ]
            pairs += [(keys[s][mine], values[s][mine]) for s in range(len(keys)) if sees(t, s)]
            scores = [sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(width) for k, _ in pairs]
            weights = [math.exp(score - max(scores)) for score in scores]
            row += [
                sum(w * v[i] for w, (_, v) in zip(weights, pairs, strict=True)) / sum(weights) for i in range(width)
            ]
        found.append(row)
    return found


def rotate(states, cosines, sines, heads):
    """Return Llama's rotary positions: ``x cos + (-x2, x1) sin`` in every head."""
    found = []
    for x, cosine, sine in zip(states, cosines, sines, strict=True):
        width = len(x) // heads
        row = []
        for head in range(heads):
            h = x[head * width : (head + 1) * width]
            turned = [-v for v in h[width // 2 :]] + h[: width // 2]
            row += [v * float(c) + u * float(s) for v, u, c, s in zip(h, turned, cosine, sine, strict=True)]
        found.append(row)
    return found


def layer_norm(x, weight, bias, eps):
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return [
        (v - mean) / math.sqrt(variance + eps) * float(w) + float(b) for v, w, b in zip(x, weight, bias, strict=True)
    ]


def gelu(value):
    return 0.5 * value * (1 + math.erf(value / math.sqrt(2)))


def silu(value):
    return value * sigmoid(value)
