"""The exact Fisher of single parameters: per-example squared gradients, summed while the backward pass runs."""

from __future__ import annotations

from tailora.signals.elementwise.fisher import ElementwiseFisher, elementwise_fisher

__all__ = ["ElementwiseFisher", "elementwise_fisher"]
