"""Short marks of the values that a mask freezes, so that nobody continues from others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

ZERO = "zero"
"""The mark of a parameter whose frozen entries are all zero."""


def frozen_mark(parameter: Tensor, positions: Tensor) -> str:
    """Return a mark of everything in a parameter but its kept entries.

    Args:
        parameter: The parameter.
        positions: Its kept entries.

    Returns:
        ``zero`` where the rest is zero, else a SHA-256 (hex) of dtype, shape and bits.
    """
    with torch.no_grad():
        rest = parameter.detach().reshape(-1).cpu().clone()
        rest[positions.long()] = 0
    raw = rest.view(torch.uint8)
    if not raw.any():
        return ZERO
    digest = hashlib.sha256(f"{parameter.dtype}{list(parameter.shape)}".encode())
    digest.update(raw.numpy().data)
    return digest.hexdigest()


def frozen_marks(parameters: Mapping[str, nn.Parameter], positions: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the marks of several parameters.

    Args:
        parameters: Name to parameter.
        positions: Name to kept entries.

    Returns:
        Name to mark.
    """
    return {name: frozen_mark(parameters[name], places) for name, places in positions.items()}


def changed(
    parameters: Mapping[str, nn.Parameter], positions: Mapping[str, Tensor], marks: Mapping[str, str]
) -> str | None:
    """Return the first parameter whose frozen entries differ from what was marked.

    Args:
        parameters: Name to parameter.
        positions: Name to kept entries.
        marks: Name to mark; a parameter without one is not compared.

    Returns:
        Its name, or ``None``.
    """
    for name, places in positions.items():
        if name in marks and frozen_mark(parameters[name], places) != marks[name]:
            return name
    return None
