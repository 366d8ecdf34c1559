"""What an estimate of the intrinsic dimension is, and what a way of estimating it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailora.geometry.nearest import Neighbours

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class IntrinsicDimension:
    """An estimated intrinsic dimension.

    Attributes:
        value: The estimate.
        std_error: Its standard error under the method's own model (each method says which).
        points: Points that counted.
        duplicates: Points left out because another point lies at distance exactly zero.
        method: The method and its options, such as ``twonn, linear, discard 0.1, i/N``.
    """

    value: float
    std_error: float
    points: int
    duplicates: int
    method: str


Estimator = Callable[["Tensor", Neighbours, Mapping[str, Any]], IntrinsicDimension]
"""From the points ``[N, D]``, their neighbours and the options to an estimate."""


@dataclass(frozen=True, slots=True)
class Method:
    """A registered way to estimate an intrinsic dimension.

    Attributes:
        estimate: The estimator.
        k: Neighbours it looks at unless told otherwise.
        least_k: The fewest it can work with.
        options: Options it understands and their defaults; ``k`` among them where it may be chosen.
    """

    estimate: Estimator
    k: int
    least_k: int
    options: Mapping[str, Any]
