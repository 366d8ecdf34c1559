"""Signals: what is measured per target, one file each, one line each below."""

from __future__ import annotations

from tailora.registry import Registry
from tailora.signals.base import Accumulator, Signal
from tailora.signals.fisher import FisherTrace
from tailora.signals.fisher_batch_b import BatchFisherOfB
from tailora.signals.gradient_spectrum import GradientSpectrum

SIGNALS: Registry[Signal] = Registry("signal")

SIGNALS.add(
    "fisher",
    Signal(FisherTrace, "nats squared", "[n_targets]"),
    summary="trace of the empirical Fisher of the full weight, exact per example",
    citation="Sung et al. 2021, Training Neural Networks with Fixed Sparse Masks, arXiv 2111.09839",
)
SIGNALS.add(
    "gradient_spectrum",
    Signal(GradientSpectrum, "nats", "[n_targets, k]"),
    summary="leading singular values of the mean calibration gradient",
    citation="Eckart and Young 1936, doi 10.1007/BF02288367",
)
SIGNALS.add(
    "fisher_batch_b",
    Signal(BatchFisherOfB, "nats squared", "[n_targets]"),
    summary="FIM-LoRA's published score (squared batch-mean gradient of B); not a Fisher, kept for reproduction",
    citation="FIM-LoRA: Kernel-ML/fim-lora-experiments, 2026",
)

__all__ = ["SIGNALS", "Accumulator", "Signal"]
