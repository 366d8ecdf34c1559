"""Point clouds of known dimension, drawn so that anybody can draw them again with numpy."""

from __future__ import annotations

import numpy as np
from scipy.special import gammainc


def ball(n, d, seed, width=None):
    """Uniform in the d-ball, padded with zeros to ``width`` columns."""
    x = np.random.RandomState(seed).normal(size=(n, d))
    q = (x**2).sum(axis=1, keepdims=True)
    x = x * gammainc(d / 2, q / 2) ** (1 / d) / np.sqrt(q)
    return np.pad(x, ((0, 0), (0, (width or d) - d)))


def sphere(n, d, seed):
    """Uniform on the d-sphere in d + 1 dimensions."""
    x = np.random.RandomState(seed).randn(n, d + 1)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cube(n, d, seed):
    """Uniform in the unit cube."""
    return np.random.default_rng(seed).uniform(size=(n, d))


def gaussian(n, d, seed, width=50):
    """Standard normal in d dimensions, rotated into ``width``."""
    generator = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(generator.normal(size=(width, d)))
    return generator.normal(size=(n, d)) @ basis.T


def swiss_roll(n, seed):
    """A sheet rolled up in three dimensions."""
    generator = np.random.default_rng(seed)
    t = 1.5 * np.pi * (1 + 2 * generator.uniform(size=n))
    return np.stack([t * np.cos(t), 21 * generator.uniform(size=n), t * np.sin(t)], axis=1)


def near_duplicates(n, width, offset, eps, seed=0):
    """A 12-dimensional sheet in float32, two outlying columns, 20 % near-duplicates at distance ``eps``."""
    generator = np.random.default_rng(seed)
    x = np.tanh(generator.normal(size=(n, 12)) @ generator.normal(size=(12, width)) / 3)
    x[:, 0] += offset
    x[:, 1] += 2 * offset
    pairs = n // 5
    if eps:
        step = generator.normal(size=(pairs, width))
        x[n - pairs :] = x[:pairs] + eps * step / np.linalg.norm(step, axis=1, keepdims=True)
    return x.astype(np.float32)
