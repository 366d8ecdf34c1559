"""One vector an example: the mean, the last or the first of its real tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def pool(states: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Return one row per example.

    Args:
        states: ``[n, t, h]``.
        mask: ``[n, t]``, non-zero where a token is real; ``None`` where all are.
        pooling: ``mean``, ``last`` or ``first``.

    Returns:
        float32 ``[n, h]`` (summed in float64 for float64 states); NaN for an example without any real token.
    """
    wide = torch.float64 if states.dtype == torch.float64 else torch.float32
    if mask is None:
        ends = {"first": 0, "last": -1}
        picked = states[:, ends[pooling]] if pooling in ends else states.to(wide).mean(dim=1)
        return picked.to(torch.float32, copy=True)
    real = (mask != 0).to(states.device)
    if pooling == "mean":
        # Padding may hold anything, NaN included, so it is replaced, not multiplied by zero.
        summed = states.to(wide).masked_fill(~real[:, :, None], 0.0).sum(dim=1)
        return (summed / real.sum(dim=1, keepdim=True)).to(torch.float32)
    positions = torch.arange(states.shape[1], device=states.device)
    if pooling == "last":
        place = torch.where(real, positions, -1).amax(dim=1)
    else:
        place = torch.where(real, positions, len(positions)).amin(dim=1)
        place[place == len(positions)] = -1
    picked = states[torch.arange(len(states), device=states.device), place.clamp(min=0)].to(torch.float32, copy=True)
    picked[place < 0] = torch.nan
    return picked
