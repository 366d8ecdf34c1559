"""One pass over calibration batches that feeds every statistic."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tailora.errors import ProfileError, UserError
from tailora.signals import SIGNALS
from tailora.signals.agreement import refuse_mixing
from tailora.signals.base import Context, Signal, Solved, Statistics, sums_of
from tailora.signals.examples import on_device
from tailora.signals.gradient_pass import GradientPass
from tailora.signals.hidden_states import BlockStates
from tailora.signals.losses import Loss
from tailora.signals.partial import Partial
from tailora.signals.passes import Pass
from tailora.signals.processes import add_over_processes
from tailora.signals.quiet import Mode, undisturbed
from tailora.signals.reading import statistics_for
from tailora.signals.stability import Stability
from tailora.targets import Target


@dataclass(frozen=True)
class Collecting:
    """How a pass is made.

    Attributes:
        loss: ``auto``, a name, or a callable from outputs and batch to one loss per example.
        labels: ``data``, or ``model``: drawn from the model's own predictions (the true Fisher).
        mode: ``eval``, or ``train`` with the model's dropout and checkpointing.
        check: Compare two examples of the first batch with the same examples taken alone.
        seed: For whatever is drawn at random.
        on_nonfinite: ``raise``, or ``skip`` examples whose loss or gradient is not finite.
        until: Stop once the Fisher traces of the two halves of the data rank the targets alike: a Spearman correlation.
        resume: A file that the sums are written to now and then, and read from where it exists.
        pooling: How hidden states become one vector an example: ``mean``, ``last`` or ``first``.
        options: For statistics, such as ``sketch``.
        keep_sums: Return the sums too, so that the profile can be merged with others.
        all_processes: Add up over the processes of ``torch.distributed``; all of them must then measure.
        progress: Called with the number of examples seen so far.
    """

    loss: str | Loss = "auto"
    labels: str = "data"
    mode: Mode = "eval"
    check: bool = True
    seed: int = 0
    on_nonfinite: str = "raise"
    until: float | None = None
    resume: Path | None = None
    pooling: str = "mean"
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_sums: bool = False
    all_processes: bool = True
    progress: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Collection:
    """What a pass found.

    Attributes:
        signals: Signal name to array, first axis in target order.
        examples: Examples that counted.
        batches: Batches seen.
        loss: Name of the per-example loss; empty where none was taken.
        mean_loss: Mean loss over the examples, in nats.
        one_by_one: Why examples were taken one at a time; empty where whole batches were exact.
        skipped: Which examples were left out because something about them was not finite.
        stability: Spearman correlation of the two halves' Fisher traces; ``None`` where none was measured.
        curve: After each doubling of the examples, their number and the Spearman correlation of the Fisher traces then
            with the final ones; of this process's share.
        sums: What the signals were read from, where it was to be kept.
        notes: What signals that take several passes have to say about them, for ``meta``.
    """

    signals: dict[str, np.ndarray]
    examples: int
    batches: int
    loss: str
    mean_loss: float
    one_by_one: str
    skipped: tuple[str, ...] = ()
    stability: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    sums: Mapping[str, Tensor] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


def collect(
    model: nn.Module,
    targets: Sequence[Target],
    batches: Iterable[Mapping[str, Any]],
    signals: Sequence[str],
    how: Collecting | None = None,
) -> Collection:
    """Measure signals in one pass, and those that need several in as many more.

    Args:
        model: The base model; it is left exactly as it was.
        targets: What is measured.
        batches: Dicts the model is called with, labels included; may be empty for signals of the weights alone.
        signals: Registered signal names.
        how: How the pass is made.

    Returns:
        The signals and what was counted; the same in every process where several take a share of the batches each.

    Raises:
        ProfileError: A loss or gradient is not finite, or nothing reaches any target.
        UserError: There is no batch, or it lacks labels.
    """
    how = how or Collecting()
    chosen = {name: SIGNALS[name] for name in dict.fromkeys(signals)}
    context, statistics = statistics_for(model, targets, chosen, how.seed, how.options)
    stability = Stability(None, statistics)
    wants_states = any(signal.states for signal in chosen.values())
    if wants_states and how.resume is not None:
        raise UserError("an unfinished 'intrinsic_dimension' cannot be resumed; measure it in a profile of its own")
    several = any(signal.solve is not None for signal in chosen.values())
    if several:
        batches = list(batches)
    with BlockStates(model, targets, how.pooling) if wants_states else contextlib.nullcontext() as states:
        backward = any(statistic.source == "gradients" for statistic in statistics.values())
        kind = GradientPass if backward else Pass
        run: Pass = kind(model, targets, list(statistics.values()), how, states)
        if statistics or states is not None:
            stability = _run(run, context, batches, statistics, how)
        if states is not None:
            context.cache["states"] = states.result()
        solved = _solve(context, batches if several else (), chosen, how)
        results = {name: signal.read(context, statistics) for name, signal in chosen.items()}
    mean_loss = run.loss_sum / max(run.examples, 1)
    counted = (run.examples, run.batches, run.loss_name, mean_loss)
    if solved is not None and not run.loss_name:
        counted = (solved.examples, solved.batches, solved.loss, solved.mean_loss)
    return Collection(
        results,
        *counted,
        run.one_by_one,
        tuple(run.skipped),
        stability.agreement(),
        tuple(stability.curve()),
        sums_of(statistics) if how.keep_sums else None,
        {} if solved is None else solved.notes,
    )


def _solve(
    context: Context, batches: Iterable[Mapping[str, Any]], chosen: Mapping[str, Signal], how: Collecting
) -> Solved | None:
    """Let signals that take several passes take them; return what the last one found."""
    found = None
    for name, signal in chosen.items():
        if signal.solve is not None:
            found = context.cache[name] = signal.solve(context, list(batches), how)
    return found


def _run(
    run: Pass, context: Context, batches: Iterable[Mapping[str, Any]], statistics: Statistics, how: Collecting
) -> Stability:
    """Take every batch, and add up what several processes took."""
    stability = Stability(how.until, statistics)
    partial = Partial(run, statistics, stability)
    done, between = partial.restore(), False
    if how.mode == "train":
        refuse_mixing(context.model)
    with undisturbed(context.model, run.direct, how.mode), torch.set_grad_enabled(run.gradients):
        try:
            run.start()
            for number, batch in enumerate(batches):
                partial.see(batch)
                if number < done:
                    continue
                if number == done:
                    partial.check_data()
                between = False
                run.take(on_device(batch, context.model))
                stop = stability.reached(run.examples)
                between = True
                if how.progress is not None:
                    how.progress(run.examples)
                partial.keep()
                if stop:
                    break
            if run.batches == done:
                partial.check_data(ended=True)
        except BaseException:
            # Sums that hold a part of a batch would count it twice; those of whole batches are worth keeping.
            if between:
                partial.write()
            raise
        finally:
            run.stop()
    if how.all_processes:
        add_over_processes(run, statistics)
    if not run.batches:
        raise UserError("there are no calibration batches; give at least one batch with labels")
    if run.gradients and not run.examples:
        left = f", {len(run.skipped)} of them not finite" if run.skipped else ""
        raise UserError(
            f"none of the examples in {run.batches} calibration batches counted{left}; do they have labels other than "
            "-100?"
        )
    if run.gradients and not run.reached:
        raise ProfileError("the loss reaches none of the targets; do the labels belong to this model?")
    partial.remove()
    return stability
