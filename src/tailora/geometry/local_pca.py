"""Local principal components: how many directions the neighbourhoods of points fill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tailora.errors import UserError
from tailora.geometry.estimate import IntrinsicDimension
from tailora.geometry.nearest import CHUNK_ELEMENTS, Neighbours

if TYPE_CHECKING:
    from torch import Tensor


def local_pca(points: Tensor, neighbours: Neighbours, options: Mapping[str, Any]) -> IntrinsicDimension:
    """Estimate by local principal components (Fukunaga and Olsen 1971, doi 10.1109/T-C.1971.223208).

    The local dimension of a point is the number of principal components of the point and its k nearest neighbours
    whose variance is above ``threshold`` times the largest; the estimate is the mean over points.  It cannot exceed k,
    and with few neighbours it counts noise directions too.

    The standard error is the spread of the local dimensions over ``sqrt(N / (k + 1))``, since only about
    ``N / (k + 1)`` neighbourhoods do not overlap.

    Args:
        points: ``[N, D]``.
        neighbours: k per point.
        options: ``k`` and ``threshold``.

    Returns:
        The estimate; points with a neighbour at distance zero are dropped and counted as duplicates.

    Raises:
        UserError: Fewer than three distinct points are left.
    """
    import torch

    k, threshold = int(options["k"]), float(options["threshold"])
    distinct = np.flatnonzero(neighbours.distances[:, 0] > 0)
    duplicates = len(neighbours.distances) - len(distinct)
    if len(distinct) < 3:
        raise UserError(
            f"local PCA needs at least 3 points without a duplicate and has {len(distinct)} of "
            f"{len(neighbours.distances)}; give more distinct points"
        )
    local: list[np.ndarray] = []
    step = max(1, CHUNK_ELEMENTS // ((k + 1) * points.shape[1]))
    for start in range(0, len(distinct), step):
        rows = distinct[start : start + step]
        members = np.concatenate([rows[:, None], neighbours.indices[rows, :k]], axis=1)
        # Differences to the point first: near-duplicates far from the origin would lose their digits otherwise.
        around = points[torch.from_numpy(members).to(points.device)].double()
        around = around - around[:, :1]
        around = around - around.mean(dim=1, keepdim=True)
        # The k + 1 by k + 1 products have the same eigenvalues as the D by D covariance.
        values = torch.linalg.eigvalsh(around @ around.transpose(1, 2))
        local.append((values > threshold * values[:, -1:]).sum(dim=1).cpu().numpy())
    dimensions = np.concatenate(local).astype(np.float64)
    spread = float(dimensions.std(ddof=1) / np.sqrt(max(1.0, len(dimensions) / (k + 1))))
    return IntrinsicDimension(
        float(dimensions.mean()), spread, len(dimensions), duplicates, f"local-pca, k {k}, threshold {threshold:g}"
    )
