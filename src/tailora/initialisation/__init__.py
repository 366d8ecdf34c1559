"""Initialisations: where an adapter's factors start; one file each."""

from __future__ import annotations

from tailora.initialisation import gradient
from tailora.initialisation.base import Initialisation
from tailora.registry import Registry

INITIALISATIONS: Registry[Initialisation] = Registry("initialisation")
INITIALISATIONS.add("default", Initialisation(), summary="peft's: A Kaiming-uniform, B zero")
INITIALISATIONS.add(
    "gradient",
    Initialisation(rows=gradient.rows, needs=("gradient_spectrum",), kinds=gradient.KINDS),
    summary="A along the leading right singular directions of the calibration gradient, B zero",
    citation=(
        "Tailora; the directions are those of Wang et al. 2024, LoRA-GA: Low-Rank Adaptation with Gradient "
        "Approximation, arXiv 2407.05000"
    ),
)

__all__ = ["INITIALISATIONS", "Initialisation"]
