"""Learned low-rank updates in their singular directions, without ever forming the matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Update:
    """A low-rank update ``left diag(values) right``.

    Attributes:
        left: float64 ``[out, k]``, orthonormal columns.
        values: float64 ``[k]``, falling.
        right: float64 ``[k, in]``, orthonormal rows.
    """

    left: Tensor
    values: Tensor
    right: Tensor


def update_of(a: Tensor, b: Tensor, scale: float) -> Update:
    """Return the singular value decomposition of ``scale * B A``.

    Of the factors' QR decompositions only the ``k x k`` core is decomposed, ``k`` the rank, so a matrix of the
    target's own size is never made.

    Args:
        a: ``[k, in]``.
        b: ``[out, k]``.
        scale: LoRA's ``alpha / r``.

    Returns:
        The update.
    """
    left, right, core = _parts(a, b, scale)
    outer, values, inner = torch.linalg.svd(core)
    return Update(left @ outer, values, (right @ inner.T).T)


def truncated(update: Update, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return the factors of the best approximation of an update (Eckart and Young 1936), balanced between the two.

    Args:
        update: The update.
        rank: Its new rank; where the update has fewer directions, further rows and columns are zero.
        scale: LoRA's ``alpha / r`` at the new rank.

    Returns:
        ``A [rank, in]`` and ``B [out, rank]`` with ``scale * B A`` the approximation, float64.
    """
    held = min(rank, len(update.values))
    roots = (update.values[:held] / scale).sqrt()
    a = update.right.new_zeros(rank, update.right.shape[1])
    b = update.left.new_zeros(update.left.shape[0], rank)
    a[:held] = roots[:, None] * update.right[:held]
    b[:, :held] = update.left[:, :held] * roots
    return a, b


def _parts(a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return orthonormal bases ``[out, k]``, ``[in, k]`` and the core ``[k, k]`` between them."""
    left, upper = torch.linalg.qr(b.detach().double())
    right, other = torch.linalg.qr(a.detach().double().T)
    return left, right, scale * upper @ other.T
