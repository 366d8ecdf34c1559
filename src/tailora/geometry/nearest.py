"""Exact nearest neighbours in chunks: candidates by a certified Gram bound, distances by direct differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHUNK_ELEMENTS = 2**22
"""Elements of one chunk of the distance matrix: 16 MiB in float32."""

# Differences go through memory once, in pieces that stay in a core's cache: 2 MiB in float64.
_PIECE_ELEMENTS = 2**18
_UNIT = {32: 2.0**-24, 64: 2.0**-53}
_GROUPS = 16


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest neighbours of every point, the point itself left out.

    Attributes:
        distances: float64 ``[N, k]``, ascending along a row.
        indices: int64 ``[N, k]``: which points they are; among equal distances any order.
    """

    distances: np.ndarray
    indices: np.ndarray

    @property
    def k(self) -> int:
        """How many neighbours of each point are held."""
        return int(self.distances.shape[1])


def nearest(points: Tensor, k: int = 2) -> Neighbours:
    """Return the exact ``k`` nearest neighbours of every point, never holding an N x N matrix.

    Points are centred and each pair gets a rigorous lower bound of its squared distance from a Gram matrix,
    ``(1 - g)(|x|^2 + |y|^2) - 2 x.y`` with ``g`` above the worst rounding error of any summation order (Higham 2002,
    Accuracy and Stability of Numerical Algorithms, section 3.1).  The few smallest bounds are candidates; their
    distances are direct differences in float64.  A row is certified when its k-th distance is below the bound of all
    that was left out; the others are taken again with a float64 Gram and more candidates, and what still is not
    certified (many points closer than float64 can tell apart from far away) by differences with every point.

    Args:
        points: ``[N, D]``, float32 or float64, finite, on any device; ``N > k``.
        k: How many neighbours, at least 1.

    Returns:
        Distances, relative error below 1e-12, and indices.
    """
    import torch

    with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
        points, scale = _within_range(points.detach().contiguous())
        count = len(points)
        distances = torch.empty(count, k, dtype=torch.float64, device=points.device)
        indices = torch.empty(count, k, dtype=torch.int64, device=points.device)
        rows = torch.arange(count, device=points.device)
        stages = [(torch.float32, k + 4), (torch.float64, 4 * k + 56)] if _full_float32() else [(torch.float64, k + 4)]
        for dtype, candidates in stages:
            if len(rows):
                rows = _by_bound(points, rows, k, min(candidates, count - 1), dtype, distances, indices)
        _by_differences(points, rows, k, distances, indices)
    return Neighbours(distances.div_(scale).cpu().numpy(), indices.cpu().numpy())


def restricted(points: Tensor, known: Neighbours, rows: np.ndarray, k: int) -> Neighbours:
    """Return the nearest neighbours within a subset from those within the whole, exactly.

    Args:
        points: All points ``[N, D]``.
        known: Neighbours of all points; the more they are, the fewer rows must be searched again.
        rows: The subset, distinct, ascending, int64 ``[n]``; ``n > k``.
        k: How many neighbours.

    Returns:
        Distances and indices; the indices count within ``rows``.
    """
    import torch

    position = np.full(len(known.indices), -1, dtype=np.int64)
    position[rows] = np.arange(len(rows))
    local = position[known.indices[rows]]
    held = local >= 0
    # A stable sort brings the members of the subset to the front and keeps their order, which is by distance.
    front = np.argsort(~held, axis=1, kind="stable")[:, :k]
    distances = np.take_along_axis(known.distances[rows], front, axis=1)
    indices = np.take_along_axis(local, front, axis=1)
    short = np.flatnonzero(held.sum(axis=1) < k)
    if len(short):
        subset = points[torch.from_numpy(rows).to(points.device)]
        again = torch.empty(len(rows), k, dtype=torch.float64, device=points.device)
        which = torch.empty(len(rows), k, dtype=torch.int64, device=points.device)
        _by_differences(subset, torch.from_numpy(short).to(points.device), k, again, which)
        distances[short], indices[short] = again[short].cpu().numpy(), which[short].cpu().numpy()
    return Neighbours(distances, indices)


def _within_range(points: Tensor) -> tuple[Tensor, float]:
    """Return points whose squares neither over- nor underflow in float64, and the power of two that did it."""
    largest = float(points.abs().max())
    if largest == 0 or 2.0**-300 < largest < 2.0**300:
        return points, 1.0
    # Two steps: the power itself may not be a float64; and no further than its own largest power.
    exponent = min(-math.frexp(largest)[1], 1022)
    return points * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2), 2.0**exponent


def _full_float32() -> bool:
    """Tell whether a float32 product is one: TF32 and bfloat16 products have far larger errors than the bound knows."""
    import torch

    try:
        return torch.get_float32_matmul_precision() == "highest" and not torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:
        # Once a program has set the newer ``fp32_precision``, torch refuses to say it in the older words.
        return False


def _by_bound(
    points: Tensor, rows: Tensor, k: int, candidates: int, dtype: torch.dtype, distances: Tensor, indices: Tensor
) -> Tensor:
    """Fill the rows whose neighbours the bound certifies and return the others."""
    import torch

    count, width = points.shape
    centre = points.mean(dim=0, dtype=torch.float64)
    moved = torch.empty_like(points, dtype=dtype)
    some = max(1, _PIECE_ELEMENTS // width)
    # A power of two changes no digit and keeps squares from over- and underflowing; taken before anything is rounded to
    # float32, whose range is narrower than that of the points.
    largest = max(float((part - centre).abs().max()) for part in points.split(some))
    scale = 2.0 ** -math.frexp(largest)[1] if largest > 0 else 1.0
    for part, into in zip(points.split(some), moved.split(some), strict=True):
        into.copy_((part - centre) * scale)
    unit = _UNIT[torch.finfo(dtype).bits]
    # width for the product, the rest for rounding the points, their norms and the final sum.
    slack = 1.0 - 1.01 * (width + 24) * unit
    tiny = 4 * width * torch.finfo(dtype).tiny
    squares = _square_norms(moved) * slack - tiny
    columns = squares.to(dtype)
    every = len(rows) == count
    left: list[Tensor] = []
    step = max(1, CHUNK_ELEMENTS // count)
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        own = moved[start : start + step] if every else moved[chunk]
        bound = torch.addmm(columns, own, moved.T, alpha=-2.0)
        bound[torch.arange(len(chunk), device=bound.device), chunk] = torch.inf
        worth, chosen = _smallest(bound, candidates)
        exact, order = _differences(points, chunk, chosen).sort(dim=1)
        # What was left out is at least as far as the largest bound that was taken; no distance is below zero.
        outside = (worth[:, -1].double() + squares[chunk]).clamp_(min=0.0) / scale**2
        sure = exact[:, k - 1].square() <= outside if candidates < count - 1 else torch.ones_like(outside).bool()
        distances[chunk] = exact[:, :k]
        indices[chunk] = chosen.gather(1, order[:, :k])
        left.append(chunk[~sure])
    return torch.cat(left)


def _square_norms(points: Tensor) -> Tensor:
    """Return squared norms in float64 without a float64 copy of all points."""
    import torch

    step = max(1, _PIECE_ELEMENTS // points.shape[1])
    return torch.cat([part.double().square().sum(dim=1) for part in points.split(step)])


def _smallest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` smallest of every row with their columns, ascending.

    The k smallest lie in the k groups with the smallest minima, so a vectorised minimum over groups and two short
    selections do what a selection over the whole row would, several times faster.
    """
    import torch

    rows, columns = values.shape
    groups = columns // _GROUPS
    if groups < 2 * k:
        found = values.topk(k, dim=1, largest=False, sorted=True)
        return found.values, found.indices
    head = groups * _GROUPS
    grouped = values[:, :head].unflatten(1, (_GROUPS, groups))
    best = grouped.amin(dim=1).topk(k, dim=1, largest=False, sorted=False).indices
    offsets = torch.arange(_GROUPS, device=values.device)[None, :, None] * groups
    inside = (best[:, None, :] + offsets).flatten(1)
    inside = torch.cat([inside, torch.arange(head, columns, device=values.device).expand(rows, -1)], dim=1)
    found = values.gather(1, inside).topk(k, dim=1, largest=False, sorted=True)
    return found.values, inside.gather(1, found.indices)


def _differences(points: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the distances of ``rows [n]`` to ``columns [n, m]`` by direct differences in float64."""
    import torch

    made = torch.empty(columns.shape, dtype=torch.float64, device=points.device)
    step = max(1, _PIECE_ELEMENTS // (columns.shape[1] * points.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        difference = points[columns[part]].double().sub_(points[rows[part]].double()[:, None])
        made[part] = torch.linalg.vector_norm(difference, dim=2)
    return made


def _by_differences(points: Tensor, rows: Tensor, k: int, distances: Tensor, indices: Tensor) -> None:
    """Fill rows by differences with every other point."""
    import torch

    everyone = torch.arange(len(points), device=points.device)
    step = max(1, CHUNK_ELEMENTS // max(1, points.shape[1]))
    for row in rows.tolist():
        found = []
        for part in everyone.split(step):
            difference = points[part].double() - points[row].double()
            found.append(torch.linalg.vector_norm(difference, dim=1))
        all_of_them = torch.cat(found)
        all_of_them[row] = torch.inf
        best = all_of_them.topk(k, largest=False, sorted=True)
        distances[row], indices[row] = best.values, best.indices
