"""From a model and calibration batches to a mask."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from tailora.errors import UserError, unknown_name
from tailora.fingerprints import DataFingerprint
from tailora.masks.candidates import bare_model, find_candidates
from tailora.masks.flat import unmasked
from tailora.masks.frozen import frozen_marks
from tailora.masks.mask import FisherMask
from tailora.masks.selection import Selection, Zero, count_kept, select
from tailora.masks.warmup import rewound, warm_up
from tailora.signals.elementwise import ElementwiseFisher, elementwise_fisher
from tailora.signals.elementwise.kinds import KINDS, Kind
from tailora.signals.elementwise.slots import Reduction
from tailora.signals.losses import Loss

# Warm-up gives every factor a Fisher of its own whatever the initialisation, and rewinding leaves the model as it was.
# On a language model with LoRA it was best: b_only, a sparse LoRA-FA, and per_tensor, which draws half of A, lost
# to vanilla LoRA at equal parameters (docs/experiments/masks.md).
DEFAULT_ZERO: Zero = "after_warmup"
"""What is done about a Fisher of zero unless told otherwise."""

PACKAGES = ("tailora", "torch", "transformers", "peft")


@dataclass(frozen=True)
class _Plan:
    """What ``fisher_mask`` was told about scoring."""

    kind: Kind
    reduction: Reduction
    loss: str | Loss
    seed: int
    progress: Callable[[int], None] | None

    def score(self, model: nn.Module, names: Sequence[str], batches: Sequence[Mapping[str, Any]]) -> ElementwiseFisher:
        """Measure the candidates' Fisher."""
        return elementwise_fisher(
            model,
            batches,
            parameters=list(names),
            kind=self.kind,
            reduction=self.reduction,
            loss=self.loss,
            seed=self.seed,
            progress=self.progress,
        )


def fisher_mask(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    keep: float | int = 0.5,
    parameters: Sequence[str] | None = None,
    heads: Sequence[str] | None = None,
    kind: Kind = "empirical",
    reduction: Reduction = "square",
    selection: Selection = "top",
    zero: Zero = DEFAULT_ZERO,
    warmup_steps: int = 20,
    warmup_lr: float = 1e-3,
    rewind: bool = True,
    loss: str | Loss = "auto",
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> FisherMask:
    """Choose the entries of a model's trainable parameters with the highest Fisher information.

    With an adapter this is FISH-Tuning (Xue et al. 2025, arXiv 2504.04050), without one the FISH Mask (Sung et al.
    2021, arXiv 2111.09839): the mean over examples of the squared gradient of the example's own loss, then the top
    ``keep`` of all candidates together.  The task head is no candidate, always trains and is counted apart.

    A factor whose partner is zero has a Fisher of exactly zero: LoRA's A while B is zero, and likewise one factor of
    LoHa, LoKr and bottleneck adapters.  ``zero`` says what is done about it:

    * ``after_warmup``: where some candidate tensor's Fisher is zero on the first batch, train ``warmup_steps`` of
      AdamW on the same batches first; ``rewind`` puts adapter and head back exactly, else they stay as trained.
    * ``b_only``: take the scores as they are; only entries whose Fisher is not zero can be kept.
    * ``per_tensor``: every tensor keeps its share; within one whose Fisher is zero the entries are drawn at random.
    * ``nonzero_init``: refuse unless every candidate tensor has a Fisher (PiSSA, orthogonal or Gaussian B).

    Args:
        model: A peft model, one with other adapters, or one without; with the mask it is the one to train.  Left as it
            was, random state included, but for a warm-up that is not rewound.
        batches: Dicts that the model is called with, labels included.  The same ones in every process.
        keep: A share in ``(0, 1]`` as a float (rounded down), or a number of entries as an int.
        parameters: Names or patterns of the candidates; everything that trains but the task head by default.
        heads: Names or patterns of the task head; found by itself by default.
        kind: ``empirical`` (the data's labels), ``true`` (labels drawn from the model's predictions) or ``true-exact``
            (expectation over all classes).
        reduction: ``square``, or ``absolute`` for the mean of absolute gradients.
        selection: ``top`` (of all), ``per-tensor`` (every tensor gives in proportion to its size), or a control:
            ``random``, or ``reverse`` (the lowest).
        zero: What is done about a Fisher of zero, see above.
        warmup_steps: Steps of the warm-up, one batch each, around again where there are fewer.
        warmup_lr: Its learning rate.
        rewind: Whether adapter and head go back to what they were before the warm-up.
        loss: ``auto``, a name, or a callable from outputs and batch to one loss per example.
        seed: For drawn labels, the warm-up's dropout and the random choices.
        progress: Called with the number of examples scored so far.

    Returns:
        The mask, with exactly as many entries as asked for.

    Raises:
        UserError: An option cannot be used, nothing trains, or fewer entries have a Fisher than shall be kept.
        ProfileError: The Fisher could not be measured exactly.
    """
    _known("selection", selection, get_args(Selection))
    _known("zero", zero, get_args(Zero))
    _known("kind", kind, KINDS)
    _known("reduction", reduction, get_args(Reduction))
    _positive(warmup_steps, warmup_lr)
    model = bare_model(model)
    found = find_candidates(model, parameters, heads)
    count = count_kept(keep, found.total)
    plan = _Plan(kind, reduction, loss, seed, progress)
    names = list(found.chosen)
    given = list(batches)
    trainable = [*found.chosen.values(), *found.head.values(), *found.other.values()]
    needed = selection != "random"
    with unmasked(trainable):
        warm = zero == "after_warmup" and (needed or not rewind) and _lacks_fisher(model, plan, names, given)
    steps: list[float] = []
    measured = None
    with unmasked(trainable), rewound(model, trainable, rewind=rewind):
        if warm:
            options = {"steps": warmup_steps, "learning_rate": warmup_lr, "loss": loss, "seed": seed}
            steps = warm_up(model, trainable, given, **options)
        if needed:
            measured = plan.score(model, names, given)
            if zero == "nonzero_init":
                _refuse_zero(measured.tensors)
        scores = measured.tensors if measured else {n: torch.zeros(p.shape) for n, p in found.chosen.items()}
        positions, drawn = select(scores, count, selection, zero, seed)
    kept = sum(len(places) for places in positions.values())
    if kept != count:
        raise AssertionError(f"{kept} entries were chosen instead of {count}")
    meta = _describe(measured, given)
    meta |= {
        "kind": kind,
        "reduction": reduction,
        "selection": selection,
        "zero": zero,
        "warmup": {"steps": warmup_steps, "lr": warmup_lr, "rewind": rewind, "losses": steps} if warm else None,
        "drawn_among_zeros": drawn,
        "keep": count if hasattr(keep, "__index__") else float(keep),
        "kept": kept,
        "total": found.total,
        "head": sum(parameter.numel() for parameter in found.head.values()),
        "other": sum(parameter.numel() for parameter in found.other.values()),
        "seed": seed,
        "versions": {package: _version(package) for package in PACKAGES},
        "frozen": frozen_marks(found.chosen, positions),
    }
    return FisherMask(positions, {n: tuple(p.shape) for n, p in found.chosen.items()}, meta, model)


def _lacks_fisher(model: nn.Module, plan: _Plan, names: Sequence[str], batches: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether some candidate tensor has no Fisher at all on the first batch."""
    if not batches:
        raise UserError("there are no calibration batches; give at least one batch with labels")
    quiet = _Plan(plan.kind, plan.reduction, plan.loss, plan.seed, None)
    return any(not bool(tensor.any()) for tensor in quiet.score(model, names, batches[:1]).tensors.values())


def _refuse_zero(scores: Mapping[str, Tensor]) -> None:
    for name, tensor in scores.items():
        if not bool(tensor.any()):
            raise UserError(
                f"{name!r} has a Fisher of zero everywhere, and zero='nonzero_init' was asked for; initialise the "
                "adapter so that no factor is zero (such as init_lora_weights='pissa'), or choose zero='after_warmup'"
            )


def _describe(measured: ElementwiseFisher | None, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what was measured and on what."""
    data = DataFingerprint()
    for batch in batches:
        data.update(batch)
    if measured is None:
        return {"examples": 0, "data": data.hexdigest()}
    name = measured.loss
    tokens = name.startswith(("causal-lm", "token"))
    inside = ("sum" if name.endswith("-sum") else "mean") + " over an example's own tokens" if tokens else "one value"
    return {
        "examples": measured.examples,
        "skipped": measured.skipped,
        "loss": name,
        "loss_reduction": f"{inside} per example, Fisher averaged over examples",
        "mean_loss": measured.mean_loss,
        "one_by_one": measured.one_by_one,
        "data": data.hexdigest(),
    }


def _known(what: str, value: str, options: Sequence[str]) -> None:
    """Refuse a value that is no option."""
    if value not in options:
        raise unknown_name(what, str(value), options)


def _positive(steps: int, learning_rate: float) -> None:
    """Refuse a warm-up that cannot be."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UserError(f"warmup_steps={steps!r} must be a whole number from 1 up; zero='b_only' scores without")
    if not 0 < learning_rate < float("inf"):
        raise UserError(f"warmup_lr={learning_rate!r} must be a positive number")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
