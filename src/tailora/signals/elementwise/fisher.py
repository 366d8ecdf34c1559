"""The exact elementwise Fisher of trainable parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from tailora.errors import ProfileError, UserError, unknown_name
from tailora.signals.agreement import refuse_mixing
from tailora.signals.batching import checked
from tailora.signals.elementwise.kinds import KINDS, Kind
from tailora.signals.elementwise.model import live_inputs
from tailora.signals.elementwise.passes import Options, Passes
from tailora.signals.elementwise.slots import Reduction
from tailora.signals.examples import on_device
from tailora.signals.losses import Loss
from tailora.signals.quiet import undisturbed


@dataclass(frozen=True)
class ElementwiseFisher:
    """The diagonal Fisher of some parameters, with how it was measured.

    Attributes:
        tensors: Parameter name to tensor of the parameter's shape; float32, or float64 for float64 parameters.  Unit:
            squared nats per squared unit of the parameter (nats per unit for ``absolute``).
        examples: Examples that counted (those with labels).
        batches: Batches seen.
        loss: Name of the per-example loss.
        mean_loss: Its mean over the examples, in nats.
        kind: ``empirical``, ``true`` or ``true-exact``.
        reduction: ``square`` or ``absolute``.
        mode: ``eval`` or ``train``.
        seed: What labels (and dropout in ``train``) were drawn with.
        one_by_one: Why examples were taken one at a time; empty where whole batches were exact.
        skipped: Examples left out because their loss or gradient was not finite.
        unreached: Parameters that no loss reached; their Fisher is zero.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    examples: int
    batches: int
    loss: str
    mean_loss: float
    kind: Kind
    reduction: Reduction
    mode: str
    seed: int
    one_by_one: str
    skipped: int
    unreached: tuple[str, ...]

    def trace(self) -> dict[str, float]:
        """Return the sum over each parameter's elements.

        Returns:
            Parameter name to trace, summed in float64.
        """
        return {name: float(tensor.double().sum()) for name, tensor in self.tensors.items()}


def elementwise_fisher(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    parameters: Sequence[str] | None = None,
    kind: Kind = "empirical",
    reduction: Reduction = "square",
    loss: str | Loss = "auto",
    mode: str = "eval",
    check: bool = True,
    seed: int = 0,
    one_by_one: bool | None = None,
    on_nonfinite: str = "raise",
    progress: Callable[[int], None] | None = None,
) -> ElementwiseFisher:
    """Measure ``F = 1/N sum_n (d l_n / d theta)^2`` for every element of some parameters.

    ``l_n`` is one example's own loss (by default the mean over its own tokens), so a Fisher is a mean over examples
    and never the square of a batch mean (Sung et al. 2021, arXiv 2111.09839).  Linear layers, GPT-2's Conv1D,
    embeddings, layer norms, DoRA's magnitudes and IA3's vectors are measured from whole batches; models that hold any
    other trainable parameter, or whose layers do not see one example per row, are taken one example at a time.

    Args:
        model: A peft model or any other; it is left exactly as it was.
        batches: Dicts that the model is called with, labels included.
        parameters: Names; all that require a gradient by default.
        kind: ``empirical`` (the data's labels), ``true`` (one draw per label from the model's own predictions) or
            ``true-exact`` (expectation over all classes; classification only).
        reduction: ``square``, or ``absolute`` for the mean of ``|d l_n / d theta|``.
        loss: ``auto``, a name, or a callable from outputs and batch to one loss per example.
        mode: ``eval`` (no dropout) or ``train`` (dropout drawn with ``seed``; gradient checkpointing is only active
            here).
        check: Compare two examples of the first batch with their own gradients, and take the slow way when they
            differ.  Without it, inputs that fold examples into other axes are always taken the slow way.
        seed: For drawn labels and dropout; draws do not depend on how examples are batched.
        one_by_one: Take examples one at a time (true), raise where that would be needed (false), or decide (none).
        on_nonfinite: ``raise`` naming the example, or ``skip`` it and count it.
        progress: Called with the number of examples seen so far.

    Returns:
        The Fisher and what was counted.

    Raises:
        UserError: A name, option or batch cannot be used.
        ProfileError: Something is not finite, no loss reaches any parameter, or whole batches are not exact and
            ``one_by_one`` is false.
    """
    _known("kind", kind, KINDS)
    _known("reduction", reduction, get_args(Reduction))
    _known("mode", mode, ("eval", "train"))
    _known("on_nonfinite", on_nonfinite, ("raise", "skip"))
    chosen = _choose(model, parameters)
    if mode == "train":
        refuse_mixing(model)
    options = Options(kind, reduction, loss, mode, check, seed, on_nonfinite)
    passes = Passes(model, chosen, options)
    if one_by_one:
        passes.one_by_one = "one_by_one=True was asked for"
    with undisturbed(model, dict(enumerate(chosen.values()))), live_inputs(model), torch.enable_grad():
        torch.manual_seed(seed)
        for batch in checked(batches):
            passes.take(on_device(batch, model))
            if one_by_one is False and passes.one_by_one:
                raise ProfileError(
                    f"whole batches are not exact here: {passes.one_by_one}; leave one_by_one at None to take examples "
                    "one at a time"
                )
            if progress is not None:
                progress(passes.seen)
        if not passes.batches:
            raise UserError("there are no calibration batches; give at least one batch with labels")
        if not passes.examples:
            raise UserError(f"none of {passes.seen} examples counted ({passes.skipped} skipped); do they have labels?")
        if not passes.reached:
            raise ProfileError("the loss reaches none of the parameters; is the adapter active and not merged?")
        tensors = {slot.name: slot.result(passes.examples) for slot in passes.slots}
    return ElementwiseFisher(
        tensors=tensors,
        examples=passes.examples,
        batches=passes.batches,
        loss=passes.loss_name,
        mean_loss=passes.loss_sum / passes.examples,
        kind=kind,
        reduction=reduction,
        mode=mode,
        seed=seed,
        one_by_one=passes.one_by_one,
        skipped=passes.skipped,
        unreached=tuple(name for name in tensors if name not in passes.reached),
    )


def _known(what: str, value: str, options: Sequence[str]) -> None:
    """Refuse a value that is no option."""
    if value not in options:
        raise unknown_name(what, str(value), options)


def _choose(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """Return the wanted parameters by name."""
    every = dict(model.named_parameters())
    if names is None:
        chosen = {name: parameter for name, parameter in every.items() if parameter.requires_grad}
        if not chosen:
            raise UserError(
                "no parameter requires a gradient; call with the adapted model, or name them with parameters="
            )
        return chosen
    for name in names:
        if name not in every:
            raise unknown_name("parameter", name, every)
        if not every[name].is_floating_point():
            raise UserError(f"parameter {name!r} is stored as {every[name].dtype}, which has no gradient; leave it out")
    if not names:
        raise UserError("parameters= is empty; name at least one")
    return {name: every[name] for name in dict.fromkeys(names)}
