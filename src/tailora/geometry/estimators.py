"""Intrinsic dimension of points: the public function and the table of methods."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tailora.errors import UserError, unknown_name
from tailora.geometry.estimate import IntrinsicDimension, Method
from tailora.geometry.levina_bickel import levina_bickel
from tailora.geometry.local_pca import local_pca
from tailora.geometry.nearest import Neighbours, nearest
from tailora.geometry.twonn import CDFS, FITS, twonn
from tailora.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

METHODS: Registry[Method] = Registry("method of estimating an intrinsic dimension")

METHODS.add(
    "twonn",
    Method(twonn, k=2, least_k=2, options={"discard": 0.1, "fit": "linear", "cdf": "i/N"}),
    summary="ratio of the distances to the two nearest neighbours",
    citation="Facco, d'Errico, Rodriguez and Laio 2017, doi 10.1038/s41598-017-11873-y",
)
METHODS.add(
    "levina-bickel",
    Method(levina_bickel, k=20, least_k=2, options={"k": 20}),
    summary="maximum likelihood over k neighbours, inverses averaged",
    citation="Levina and Bickel 2004, NIPS 17; MacKay and Ghahramani 2005",
)
METHODS.add(
    "local-pca",
    Method(local_pca, k=50, least_k=2, options={"k": 50, "threshold": 0.05}),
    summary="principal components of neighbourhoods, counted by Fukunaga and Olsen's threshold",
    citation="Fukunaga and Olsen 1971, doi 10.1109/T-C.1971.223208",
)


def intrinsic_dimension(
    points: np.ndarray | Tensor,
    method: str = "twonn",
    discard: float = 0.1,
    fit: str = "linear",
    cdf: str = "i/N",
    *,
    k: int | None = None,
    threshold: float | None = None,
) -> IntrinsicDimension:
    """Estimate the intrinsic dimension of a cloud of points.

    Nearest neighbours are exact, whatever the distance from the origin, and are searched in chunks where the points
    lie (CPU or GPU); memory grows with N, not with its square.

    Args:
        points: ``[N, D]``, an array or tensor of numbers; a tensor's floating dtype other than
            float64 becomes float32, an array's other than float32 float64, and so do whole numbers.
        method: ``twonn``, ``levina-bickel`` or ``local-pca``.
        discard: TwoNN: share of the largest ratios that is left out, in ``[0, 1)``.
        fit: TwoNN: ``linear`` (the paper) or ``mle``.
        cdf: TwoNN's linear fit: ``i/N`` (the paper) or ``(i-1)/N`` (the authors' program).
        k: Neighbours of ``levina-bickel`` (20) and ``local-pca`` (50).
        threshold: ``local-pca``: share of the largest local variance that makes a direction count (0.05).

    Returns:
        ``.value``, ``.std_error``, ``.points``, ``.duplicates``, ``.method``.

    Raises:
        UserError: The points or an option cannot be used.
        UnknownNameError: No such method.
    """
    given = {"discard": discard, "fit": fit, "cdf": cdf, "k": k, "threshold": threshold}
    defaults = METHODS["twonn"].options
    chosen = {name: value for name, value in given.items() if value is not None and value != defaults.get(name)}
    options = checked_options(method, chosen)
    cloud = as_points(points)
    needed = int(options.get("k", METHODS[method].k))
    if len(cloud) <= max(needed, 2):
        raise UserError(
            f"{method} looks at {needed} neighbours of each point and there are only {len(cloud)} points; give more"
        )
    return estimate_from(cloud, nearest(cloud, needed), method, options)


def estimate_from(
    points: Tensor, neighbours: Neighbours, method: str, options: Mapping[str, Any]
) -> IntrinsicDimension:
    """Estimate from neighbours that are known already.

    Args:
        points: ``[N, D]``.
        neighbours: Their neighbours, as many as the method looks at.
        method: A registered method.
        options: All of its options, as ``checked_options`` returns them.

    Returns:
        The estimate.
    """
    return METHODS[method].estimate(points, neighbours, options)


def checked_options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's options with the given ones in their place.

    Args:
        method: A registered method.
        given: Options by name.

    Returns:
        Every option of the method.

    Raises:
        UserError: A value cannot be used.
        UnknownNameError: No such method, fit or convention.
    """
    options = dict(METHODS[method].options)
    for name, value in given.items():
        if name not in options:
            # A warning, not an error: scripts go through methods with one set of options.
            warnings.warn(f"option {name}={value!r} has no effect on method {method!r}; leave it out", stacklevel=3)
            continue
        options[name] = value
    if "fit" in options and options["fit"] not in FITS:
        raise unknown_name("fit", str(options["fit"]), FITS)
    if "cdf" in options and options["cdf"] not in CDFS:
        raise unknown_name("cdf", str(options["cdf"]), CDFS)
    _check_share("discard", options, low_included=True)
    _check_share("threshold", options, low_included=False)
    least = METHODS[method].least_k
    k = options.get("k", least)
    if isinstance(k, bool) or not isinstance(k, int) or k < least:
        raise UserError(f"k={k!r} of method {method!r} must be a whole number of at least {least}")
    return options


def _check_share(name: str, options: Mapping[str, Any], *, low_included: bool) -> None:
    """Refuse a share outside of [0, 1) or (0, 1)."""
    if name not in options:
        return
    value = options[name]
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value < 1
    if not usable or value < 0 or (value == 0 and not low_included):
        raise UserError(f"{name}={value!r} must be a number {'from' if low_included else 'above'} 0 and below 1")


def as_points(points: np.ndarray | Tensor) -> Tensor:
    """Return points as a float32 or float64 tensor where they lie.

    Args:
        points: ``[N, D]``.

    Returns:
        A tensor that may share the caller's memory; nothing here writes to it.

    Raises:
        UserError: They are not ``[N, D]`` numbers, too few, or not all finite.
    """
    import numpy as np
    import torch

    if isinstance(points, torch.Tensor):
        if points.layout != torch.strided or points.is_meta:
            kind = "on the meta device, which holds no values" if points.is_meta else f"{points.layout}"
            raise UserError(f"points are {kind}; give a dense tensor with values")
        cloud = points.detach()
    else:
        array = np.asarray(points)
        if array.dtype.kind not in "fiub":
            raise UserError(f"points must be numbers, not {array.dtype}; give a float array [N, D]")
        # Integers and half or extended precision have no counterpart in torch that is worth keeping.
        array = np.ascontiguousarray(array, dtype=None if array.dtype in (np.float32, np.float64) else np.float64)
        if not array.flags.writeable:
            array = array.copy()
        cloud = torch.from_numpy(array)
    if cloud.dtype.is_complex:
        raise UserError("points must be real numbers; give the real and imaginary parts as columns")
    if cloud.ndim != 2:
        raise UserError(f"points must be [N, D], one point a row, not {list(cloud.shape)}; reshape them")
    if len(cloud) < 3 or cloud.shape[1] < 1:
        raise UserError(f"an intrinsic dimension needs at least 3 points, and {list(cloud.shape)} was given; give more")
    if cloud.dtype not in (torch.float32, torch.float64):
        cloud = cloud.to(torch.float32 if cloud.dtype.is_floating_point else torch.float64)
    good = torch.isfinite(cloud).all(dim=1)
    if not bool(good.all()):
        bad = int((~good).nonzero()[0])
        raise UserError(f"point number {bad} is not finite; leave out the {int((~good).sum())} such points")
    return cloud
