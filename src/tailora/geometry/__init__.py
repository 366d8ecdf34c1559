"""Geometry: how many dimensions a cloud of points really fills; one file an estimator."""

from __future__ import annotations

from tailora.geometry.estimate import IntrinsicDimension, Method
from tailora.geometry.estimators import METHODS, intrinsic_dimension

__all__ = ["METHODS", "IntrinsicDimension", "Method", "intrinsic_dimension"]
