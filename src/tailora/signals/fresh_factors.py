"""The A that a fresh LoRA would start from, drawn privately per target."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from tailora.targets import Target

FRESH_RANK = 8
"""The rank that FIM-LoRA scores at."""


def fresh_a(target: Target, seed: int, rank: int = FRESH_RANK) -> Tensor:
    """Return an A drawn like peft's default: Kaiming uniform with bound ``1/sqrt(in)``.

    Args:
        target: Whose A it is.
        seed: With the target's name it makes a generator of its own, so no draw depends on the other targets.
        rank: Its rank, at most the matrix's.

    Returns:
        float64 ``[rank, in]`` on the host.
    """
    inputs = target.shape[1]
    drawn = torch.rand(
        min(rank, target.max_rank), inputs, generator=private_generator(seed, target.name), dtype=torch.float64
    )
    return (drawn * 2 - 1) / math.sqrt(inputs)


def private_generator(seed: int, *names: str) -> torch.Generator:
    """Return a generator on the host that depends on a seed and some names alone.

    Args:
        seed: The seed.
        *names: What the numbers are for.

    Returns:
        The generator.
    """
    digest = hashlib.sha256(":".join((str(seed), *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
