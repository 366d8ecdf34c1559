"""AdamW and a cosine schedule for many students at once, each with a learning rate of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def cosine(step: int, steps: int) -> float:
    """Return the factor of the learning rate in a step: from 1 down to 0 along half a cosine.

    Args:
        step: Number of the step, from 0.
        steps: Steps in all.

    Returns:
        The factor.
    """
    return 0.5 * (1 + math.cos(math.pi * step / steps))


class BatchedAdamW:
    """``torch.optim.AdamW`` for parameters whose first axis counts independent students.

    Loshchilov and Hutter 2019, arXiv 1711.05101.  A student's update depends on nothing of the others, and an entry
    that never gets a gradient stays at zero if it started there.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        rates: Tensor,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        """Start with empty moments.

        Args:
            parameters: Leaf tensors ``[students, ...]`` of two further axes; changed by ``step``.
            rates: Learning rate of every student, ``[students]``.
            betas: Decay of the two moments.
            eps: Added to the root of the second moment.
            weight_decay: Decoupled weight decay.
        """
        self.parameters = list(parameters)
        self.rates = rates[:, None, None]
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """Take a step along the gradients and drop them.

        Args:
            factor: What the schedule multiplies every learning rate by.
        """
        self.steps += 1
        one, two = self.betas
        root = math.sqrt(1 - two**self.steps)
        for parameter, first, second in zip(self.parameters, self.first, self.second, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            rates = (self.rates * factor).to(parameter.dtype)
            parameter.mul_(1 - rates * self.weight_decay)
            first.lerp_(gradient, 1 - one)
            second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
            moved = first / (second.sqrt().div_(root).add_(self.eps))
            parameter.sub_(moved.mul_(rates / (1 - one**self.steps)))
            parameter.grad = None
