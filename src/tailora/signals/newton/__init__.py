"""Newton steps of the calibration loss over all targets at once, and what is read from them."""

from __future__ import annotations

from tailora.signals.newton.options import ITERATIONS, held_out_of, iterations_of, passes

__all__ = ["ITERATIONS", "held_out_of", "iterations_of", "passes"]
