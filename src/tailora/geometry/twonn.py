"""TwoNN: the intrinsic dimension from the ratio of the two nearest neighbours' distances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tailora.errors import UserError
from tailora.geometry.estimate import IntrinsicDimension
from tailora.geometry.nearest import Neighbours

if TYPE_CHECKING:
    from torch import Tensor

FITS = ("linear", "mle")
CDFS = ("i/N", "(i-1)/N")


def twonn(points: Tensor, neighbours: Neighbours, options: Mapping[str, Any]) -> IntrinsicDimension:
    """Estimate by TwoNN (Facco, d'Errico, Rodriguez and Laio 2017, doi 10.1038/s41598-017-11873-y).

    Where the density is constant out to the second neighbour, ``mu = r2 / r1`` follows ``F(mu) = 1 - mu^(-d)``.

    - ``linear``: of the N sorted ratios the smallest ``(1 - discard) N`` are kept, and d is the slope of the least
      squares line through the origin of ``y = -log(1 - F_emp)`` on ``x = log mu``: ``sum(xy) / sum(x^2)``.  ``F_emp``
      of the i-th smallest is ``i/N`` (the paper) or ``(i-1)/N`` (the authors' program).  With ``discard = 0`` and
      ``i/N`` the last ratio, whose y is infinite, is left out of the fit.
    - ``mle`` with ``discard = 0``: ``(N - 1) / sum(log mu)``, unbiased under the model.  With ``discard > 0`` the
      ratios beyond the k kept ones are censored, not ignored: ``(k - 1) / (sum of the k + (N - k) log mu_k)``.

    The standard error is that of N independent ratios: ``d / sqrt(k - 2)`` for ``mle`` (a Gamma law), and for
    ``linear`` the delta method on the spacings of exponential order statistics, 0.034 d at N = 1000 and discard 0.1.
    Ratios of neighbouring points are not independent, and the true spread of a sample is up to 1.4 times larger.

    Args:
        points: Not used: the distances say all.
        neighbours: At least two per point.
        options: ``discard``, ``fit``, ``cdf``.

    Returns:
        The estimate; points with ``r1 = 0`` are dropped and counted as duplicates.

    Raises:
        UserError: Fewer than three distinct points are left, or every ratio kept is one.
    """
    discard, fit, cdf = float(options["discard"]), str(options["fit"]), str(options["cdf"])
    first, second = neighbours.distances[:, 0], neighbours.distances[:, 1]
    distinct = first > 0
    log_mu = np.sort(np.log(second[distinct] / first[distinct]))
    count, duplicates = len(log_mu), int((~distinct).sum())
    kept = int(np.floor(count * (1.0 - discard) + 1e-9))
    if kept < 3:
        raise UserError(
            f"TwoNN needs at least 3 ratios and {len(distinct)} points leave {kept} ({duplicates} of them coincide "
            f"with another point, {discard:g} of the rest are discarded); give more distinct points or discard fewer"
        )
    if fit == "mle":
        value, std_error = _mle(log_mu, kept)
        return IntrinsicDimension(value, std_error, count, duplicates, f"twonn, mle, discard {discard:g}")
    value, std_error = _linear(log_mu, kept, cdf)
    return IntrinsicDimension(value, std_error, count, duplicates, f"twonn, linear, discard {discard:g}, {cdf}")


def _mle(log_mu: np.ndarray, kept: int) -> tuple[float, float]:
    """Return the (censored) maximum-likelihood estimate, corrected for bias, and its standard error."""
    total = float(log_mu[:kept].sum() + (len(log_mu) - kept) * log_mu[kept - 1])
    value = (kept - 1) / _positive(total)
    return value, value / float(np.sqrt(kept - 2))


def _linear(log_mu: np.ndarray, kept: int, cdf: str) -> tuple[float, float]:
    """Return the slope through the origin and its standard error."""
    count = len(log_mu)
    ranks = np.arange(1, kept + 1) if cdf == "i/N" else np.arange(kept)
    if ranks[-1] == count:
        ranks, kept = ranks[:-1], kept - 1
    x, y = log_mu[:kept], -np.log1p(-ranks / count)
    value = float((x * y).sum()) / _positive(float((x * x).sum()))
    # x_i d is a sum of independent spacings e_m / (N - m + 1), m <= i, with e_m exponential: to first order the error
    # of the slope is a sum of (e_m - 1) with these weights.
    weights = np.cumsum(y[::-1])[::-1] / (count - np.arange(kept))
    return value, value * float(np.sqrt((weights**2).sum()) / (y * y).sum())


def _positive(total: float) -> float:
    """Refuse a sum of log ratios that is zero."""
    if not total > 0:
        raise UserError(
            "every ratio of second to first neighbour distance is 1 (points on a regular grid?), which has no "
            "intrinsic dimension under TwoNN; give points drawn from a distribution"
        )
    return total
