"""Levina and Bickel's maximum-likelihood estimator over k neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tailora.errors import UserError
from tailora.geometry.estimate import IntrinsicDimension
from tailora.geometry.nearest import Neighbours

if TYPE_CHECKING:
    from torch import Tensor


def levina_bickel(points: Tensor, neighbours: Neighbours, options: Mapping[str, Any]) -> IntrinsicDimension:
    """Estimate by Levina and Bickel 2004, averaged as MacKay and Ghahramani 2005 show it should be.

    With ``T_j`` the distance to the j-th neighbour, ``1/m(x) = mean over j < k of log(T_k / T_j)``; the average over
    points is that of the *inverses*, ``d = 1 / mean(1/m)``, which is the maximum-likelihood estimate if all points
    were independent (MacKay and Ghahramani, Comments on "Maximum likelihood estimation of intrinsic dimension").

    The standard error is ``d / sqrt(N (k - 1) / k)``: there are about N/k neighbourhoods that do not overlap, each with
    k - 1 ratios.  It is a rule of thumb, on the safe side for data without curvature.

    Args:
        points: Not used: the distances say all.
        neighbours: k per point, at least 2.
        options: ``k``.

    Returns:
        The estimate; points with a neighbour at distance zero are dropped and counted as duplicates.

    Raises:
        UserError: Fewer than three distinct points are left, or all neighbours are equally far.
    """
    k = int(options["k"])
    held = neighbours.distances[:, :k]
    distinct = held[:, 0] > 0
    count, duplicates = int(distinct.sum()), int((~distinct).sum())
    if count < 3:
        raise UserError(
            f"Levina-Bickel needs at least 3 points without a duplicate and has {count} of {len(held)}; give more "
            "distinct points"
        )
    logs = np.log(held[distinct])
    inverse = (logs[:, -1:] - logs[:, :-1]).mean(axis=1)
    if not inverse.mean() > 0:
        raise UserError(f"the {k} nearest neighbours of every point are equally far; raise k or give other points")
    value = float(1.0 / inverse.mean())
    return IntrinsicDimension(
        value, value / float(np.sqrt(count * (k - 1) / k)), count, duplicates, f"levina-bickel, k {k}"
    )
