"""Planted problems that are built and solved within a second."""

from __future__ import annotations

import dataclasses

from tailora.lab.families import FAMILIES
from tailora.lab.spec import Planting, Shape

# Taken before any test puts a family of its own in its place.
SPARSE = FAMILIES["sparse"]


def small(seed=0, batch=3):
    return dataclasses.replace(
        SPARSE(seed),
        shape=Shape(hidden=16, inner=24, layers=2, vocabulary=29),
        planting=Planting(low=2, high=4),
        length=6,
        batch=batch,
        evaluation=20,
        calibration=8,
    )
