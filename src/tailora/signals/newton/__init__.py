"""Newton steps of the calibration loss over all targets at once, and what is read from them."""

from __future__ import annotations

from tailora.signals.newton.cost import ITERATIONS, iterations_of, passes

__all__ = ["ITERATIONS", "iterations_of", "passes"]
