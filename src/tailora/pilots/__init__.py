"""Pilots: what a short training of a larger adapter says about where rank is worth its parameters."""

from __future__ import annotations

from tailora.pilots.factors import Update, truncated, update_of
from tailora.pilots.worth import PATH, worths

SPECTRUM, WORTH = "pilot_spectrum", "pilot_worth"
"""Names of the two signals of a pilot."""

__all__ = ["PATH", "SPECTRUM", "WORTH", "Update", "truncated", "update_of", "worths"]
