"""Slow, obvious twins of the masks: choosing by sorting, AdamW and SGD written out entry by entry."""

from __future__ import annotations

import math


def top(scores, count):
    """Return the numbers of the highest scores; of equal ones the earlier."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


def lowest(scores, count):
    """Return the numbers of the lowest scores; of equal ones the earlier."""
    return sorted(sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count])


def quotas(sizes, count):
    """Deal ``count`` in proportion to sizes: whole parts first, then by the largest remainder, then in order."""
    exact = [count * size / sum(sizes) for size in sizes]
    dealt = [count * size // sum(sizes) for size in sizes]
    order = sorted(range(len(sizes)), key=lambda i: (-round(exact[i] - dealt[i], 9), i))
    for i in order[: count - sum(dealt)]:
        dealt[i] += 1
    return dealt


def clip(gradients, limit):
    """Scale all gradients so that their norm is at most ``limit``, as torch does; return the norm before."""
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients.values()))
    factor = min(1.0, limit / (norm + 1e-6))
    for gradient in gradients.values():
        gradient.mul_(factor)
    return norm


class AdamW:
    """Dense AdamW (Loshchilov and Hutter 2019) that moves only what the mask marks."""

    def __init__(self, lr, decay, betas=(0.9, 0.999), eps=1e-8):
        self.lr, self.decay, self.betas, self.eps = lr, decay, betas, eps
        self.first, self.second, self.steps = {}, {}, 0

    def step(self, values, gradients, masks):
        """Change ``values`` (name to float64 tensor) in place."""
        self.steps += 1
        beta1, beta2 = self.betas
        for name, value in values.items():
            g = gradients[name]
            m = self.first[name] = beta1 * self.first.get(name, 0 * g) + (1 - beta1) * g
            v = self.second[name] = beta2 * self.second.get(name, 0 * g) + (1 - beta2) * g * g
            corrected = (m / (1 - beta1**self.steps)) / ((v / (1 - beta2**self.steps)).sqrt() + self.eps)
            moved = value * (1 - self.lr * self.decay) - self.lr * corrected
            value[masks[name]] = moved[masks[name]]


class Momentum:
    """Dense SGD with momentum and coupled weight decay that moves only what the mask marks."""

    def __init__(self, lr, decay, momentum):
        self.lr, self.decay, self.momentum = lr, decay, momentum
        self.velocity = {}

    def step(self, values, gradients, masks):
        """Change ``values`` in place."""
        for name, value in values.items():
            g = gradients[name] + self.decay * value
            v = self.velocity[name] = self.momentum * self.velocity[name] + g if name in self.velocity else g.clone()
            value[masks[name]] = (value - self.lr * v)[masks[name]]
