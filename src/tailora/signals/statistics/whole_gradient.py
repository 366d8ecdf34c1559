"""The sum of the examples' gradients per target, never sketched."""

from __future__ import annotations

from dataclasses import replace

from tailora.signals.base import Context
from tailora.signals.statistics.mean_gradient import MeanGradient


class WholeGradient(MeanGradient):
    """``sum_n G_n`` per target in whole, as large as the weights in float32, for signals of single elements."""

    def __init__(self, context: Context) -> None:
        """Start at zero."""
        super().__init__(replace(context, options={**context.options, "sketch": 0}))
