"""Signals: what is measured per target, one file each, one line each below."""

from __future__ import annotations

from tailora.registry import Registry
from tailora.signals import activations, weights
from tailora.signals.adapter_output_norm import AdapterOutputs, adapter_output_norm
from tailora.signals.base import Context, Signal, Statistic
from tailora.signals.fisher import fisher
from tailora.signals.fisher_batch_b import fisher_batch_b
from tailora.signals.fisher_batch_b_norms import fisher_batch_b_l2, fisher_batch_b_max
from tailora.signals.fisher_lora_b import fisher_lora_b
from tailora.signals.gradient_norm import gradient_norm
from tailora.signals.gradient_spectrum import gradient_cross_spectrum, gradient_spectrum
from tailora.signals.intrinsic_dimension import intrinsic_dimension
from tailora.signals.newton.spectrum import newton_agreement, newton_spectrum, solve_agreement, solve_newton
from tailora.signals.sensitivity import sensitivity
from tailora.signals.statistics.batch_b import BatchB
from tailora.signals.statistics.batch_b_elements import BatchBElements
from tailora.signals.statistics.example_b import ExampleB
from tailora.signals.statistics.example_norms import ExampleNorms
from tailora.signals.statistics.mean_gradient import MeanGradient
from tailora.signals.statistics.moments import InputMoments, OutputGradientMoments
from tailora.signals.statistics.squares import InputSquares, OutputGradientSquares

SIGNALS: Registry[Signal] = Registry("signal")

_ONE, _MANY = "[n_targets]", "[n_targets, k]"

SIGNALS.add(
    "fisher",
    Signal(fisher, (ExampleNorms,), "nats squared", _ONE),
    summary="trace of the empirical Fisher of the full weight, exact per example",
    citation="Sung et al. 2021, Training Neural Networks with Fixed Sparse Masks, arXiv 2111.09839",
)
SIGNALS.add(
    "gradient_spectrum",
    Signal(gradient_spectrum, (MeanGradient,), "nats", _MANY),
    summary="leading singular values of the mean calibration gradient",
    citation="Eckart and Young 1936, doi 10.1007/BF02288367",
)
SIGNALS.add(
    "gradient_cross_spectrum",
    Signal(gradient_cross_spectrum, (MeanGradient,), "nats", _MANY),
    summary="singular directions of one half of the data, measured on the other: no noise in expectation",
    citation="Tailora",
)
SIGNALS.add(
    "newton_spectrum",
    Signal(newton_spectrum, (), "root of nats", _MANY, solve=solve_newton),
    summary="singular values of each target's part of one Newton step over all targets, in K-FAC's measure",
    citation="Tailora; Martens and Grosse 2015, K-FAC, arXiv 1503.05671; Martens 2010, Hessian-free optimization",
)
SIGNALS.add(
    "newton_agreement",
    Signal(newton_agreement, (), "share", _ONE, solve=solve_agreement),
    summary="how far held-out examples confirm the Newton step, the same for all targets: 0 where it fits noise",
    citation="Tailora",
)
SIGNALS.add(
    "gradient_norm",
    Signal(gradient_norm, (MeanGradient,), "nats", _ONE),
    summary="Frobenius norm of the mean calibration gradient",
)
SIGNALS.add(
    "sensitivity",
    Signal(sensitivity, (MeanGradient,), "nats", _ONE, weights=True, whole=True),
    summary="mean of |weight times gradient| over the weight's elements, GoRA's importance",
    citation="GoRA, arXiv 2502.12171",
)
SIGNALS.add(
    "fisher_lora_b",
    Signal(fisher_lora_b, (ExampleB,), "nats squared", _ONE),
    summary="trace of the Fisher of a fresh LoRA's B (that of A is zero while B is)",
    citation="Xue et al. 2025, FISH-Tuning, arXiv 2504.04050, eq. 3",
)
SIGNALS.add(
    "fisher_batch_b",
    Signal(fisher_batch_b, (BatchB,), "nats squared", _ONE),
    summary="FIM-LoRA's published score (squared batch-mean gradient of B); not a Fisher, kept for reproduction",
    citation="FIM-LoRA: Kernel-ML/fim-lora-experiments, 2026",
)
SIGNALS.add(
    "fisher_batch_b_max",
    Signal(fisher_batch_b_max, (BatchBElements,), "nats squared", _ONE),
    summary="the largest element of what fisher_batch_b averages, for FIM-LoRA's ablation of the aggregation",
    citation="FIM-LoRA: Kernel-ML/fim-lora-experiments, 2026, RESEARCH_PLAN.md, ablation B",
)
SIGNALS.add(
    "fisher_batch_b_l2",
    Signal(fisher_batch_b_l2, (BatchBElements,), "nats squared", _ONE),
    summary="the Euclidean norm of what fisher_batch_b averages, for FIM-LoRA's ablation of the aggregation",
    citation="FIM-LoRA: Kernel-ML/fim-lora-experiments, 2026, RESEARCH_PLAN.md, ablation B",
)
SIGNALS.add(
    "activation_second_moment",
    Signal(activations.activation_second_moment, (InputSquares,), "activation squared", _ONE),
    summary="mean squared length of the inputs, the trace of K-FAC's input factor",
    citation="Martens and Grosse 2015, K-FAC, arXiv 1503.05671",
)
SIGNALS.add(
    "activation_spectrum",
    Signal(activations.activation_spectrum, (InputMoments,), "activation", _MANY),
    summary="leading singular values of the inputs",
    citation="Tropp et al. 2017, arXiv 1706.05736 (streaming)",
)
SIGNALS.add(
    "explained_variance",
    Signal(activations.explained_variance, (InputMoments,), "share of the variance", _MANY),
    summary="explained-variance ratios of the inputs, by which EVA deals ranks",
    citation="Paischer et al. 2024, EVA, arXiv 2410.07170",
)
SIGNALS.add(
    "output_gradient_second_moment",
    Signal(activations.output_gradient_second_moment, (OutputGradientSquares,), "(nats / activation) squared", _ONE),
    summary="mean squared length of the output gradients, the trace of K-FAC's output factor",
    citation="Martens and Grosse 2015, K-FAC, arXiv 1503.05671",
)
SIGNALS.add(
    "output_gradient_spectrum",
    Signal(activations.output_gradient_spectrum, (OutputGradientMoments,), "nats / activation", _MANY),
    summary="leading singular values of the output gradients",
    citation="Martens and Grosse 2015, K-FAC, arXiv 1503.05671",
)
SIGNALS.add(
    "intrinsic_dimension",
    Signal(intrinsic_dimension, (), "dimensions", "[n_targets, 2, 1 + replicates]", states=True),
    summary="intrinsic dimension of the hidden states before and after each target's block, with replicates",
    citation="GeLoRA, arXiv 2412.09250; Facco et al. 2017, TwoNN, doi 10.1038/s41598-017-11873-y",
)
SIGNALS.add(
    "weight_spectrum",
    Signal(weights.weight_spectrum, (), "weight", _MANY, weights=True),
    summary="leading singular values of the weight; needs no data",
)
SIGNALS.add(
    "stable_rank",
    Signal(weights.stable_rank, (), "directions", _ONE, weights=True),
    summary="squared Frobenius norm over squared largest singular value of the weight; needs no data",
    citation="Rudelson and Vershynin 2007, doi 10.1145/1255443.1255449",
)
SIGNALS.add(
    "condition_number",
    Signal(weights.condition_number, (), "none", _ONE, weights=True),
    summary="largest over smallest singular value of the weight, by which KappaTune chooses; needs no data",
    citation="KappaTune: github.com/oswaldoludwig/kappaTune, peft's KappaTuneSelector",
)
SIGNALS.add(
    "weight_snr",
    Signal(weights.weight_snr, (), "1 / weight", _ONE, weights=True),
    summary="signal-to-noise ratio of the weight by Marchenko and Pastur's edge, as Spectrum; needs no data",
    citation="Hartford et al. 2024, Spectrum, arXiv 2406.06623",
)
SIGNALS.add(
    "adapter_output_norm",
    Signal(adapter_output_norm, (AdapterOutputs,), "activation squared", _ONE, adapter=True),
    summary="mean squared length of what a trained LoRA adds to its target's output; needs a model with LoRA",
    citation="Zhou et al. 2024, LoRA-drop, arXiv 2402.07721",
)

__all__ = ["SIGNALS", "Context", "Signal", "Statistic"]
