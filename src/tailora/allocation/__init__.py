"""Allocators: pure functions from a profile's signals to marginal gains, one file each, one line each below."""

from __future__ import annotations

from tailora.allocation.allocate import allocate, rank_limits, unit_costs
from tailora.allocation.explained_variance import explained_variance, faithful_explained_variance
from tailora.allocation.explicit import explicit, explicit_ranks
from tailora.allocation.gelora import faithful_gelora, gelora
from tailora.allocation.newton import newton
from tailora.allocation.pilot import pilot
from tailora.allocation.problem import Allocator, Problem
from tailora.allocation.proportional import faithful_proportional, proportional
from tailora.allocation.random_rank import random_rank
from tailora.allocation.spectral import spectral
from tailora.allocation.uniform import uniform
from tailora.registry import Registry

ALLOCATORS: Registry[Allocator] = Registry("allocator")

ALLOCATORS.add(
    "uniform", Allocator(uniform), summary="the same rank on every target", citation="Hu et al. 2021, arXiv 2106.09685"
)
ALLOCATORS.add("random", Allocator(random_rank), summary="ranks in proportion to random scores, a control")
ALLOCATORS.add(
    "proportional",
    Allocator(proportional, faithful_proportional, ("fisher",), ("signal", "per_element", "faithful_r_min")),
    summary="ranks in proportion to a score per target (FIM-LoRA: Fisher information)",
    citation="FIM-LoRA: Kernel-ML/fim-lora-experiments, 2026",
)
ALLOCATORS.add(
    "spectral",
    Allocator(spectral, needs=("gradient_spectrum",), options=("signal",)),
    summary="gain of the k-th rank = k-th squared singular value of the calibration gradient",
    citation="Tailora; Eckart and Young 1936",
)
ALLOCATORS.add(
    "newton",
    Allocator(newton, needs=("newton_spectrum", "newton_agreement"), options=("confidence",)),
    summary="gain of the k-th rank = k-th squared singular value of a Newton step, as far as other examples confirm it",
    citation="Tailora; Martens 2010, Hessian-free optimization",
)
ALLOCATORS.add(
    "pilot",
    Allocator(pilot, needs=("pilot_spectrum", "pilot_worth"), options=("gain",)),
    summary="gain of the k-th rank = size and worth of the k-th direction that a short, larger training learned",
    citation="Tailora; Sundararajan et al. 2017, arXiv 1703.01365",
)
ALLOCATORS.add(
    "gelora",
    Allocator(gelora, faithful_gelora, ("intrinsic_dimension",), ("signal", "rounding", "ffn", "permute", "flatten")),
    summary="ranks follow the rise of the hidden states' intrinsic dimension across a block",
    citation="GeLoRA, arXiv 2412.09250, Findings of EMNLP 2025",
)
ALLOCATORS.add(
    "explained-variance",
    Allocator(
        explained_variance, faithful_explained_variance, needs=("explained_variance",), options=("signal", "rho")
    ),
    summary="ranks in the order of the inputs' explained-variance ratios (EVA's redistribution)",
    citation="Paischer et al. 2024, EVA, arXiv 2410.07170",
)
ALLOCATORS.add(
    "explicit",
    Allocator(explicit, explicit_ranks, options=("ranks",)),
    summary="ranks written down in a file or mapping",
)

__all__ = ["ALLOCATORS", "Allocator", "Problem", "allocate", "rank_limits", "unit_costs"]
