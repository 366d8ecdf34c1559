"""Singular values of each target's part of a Newton step over all targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tailora.errors import ProfileError, UserError
from tailora.packed import is_packed
from tailora.signals.base import Context, Solved
from tailora.signals.batching import count_examples
from tailora.signals.examples import for_model
from tailora.signals.gradient_spectrum import MAX_VALUES, singular_values
from tailora.signals.newton.conjugate import Vector, minimise
from tailora.signals.newton.cost import iterations_of, passes
from tailora.signals.newton.objective import Objective
from tailora.signals.quiet import undisturbed
from tailora.targets import Target

NAME = "newton_spectrum"
RELATIVE_DAMPING = 1e-6
"""Of the Gauss-Newton matrix, relative to its mean diagonal: only for the directions that no example touches."""


def newton_spectrum(context: Context, statistics: Any) -> np.ndarray:
    """Return what the Newton step found.

    Args:
        context: With the solution in its cache.
        statistics: Not read.

    Returns:
        float64 ``[n_targets, k]``.
    """
    return context.cache[NAME].values


def solve_newton(context: Context, batches: Sequence[Mapping[str, Any]], how: Any) -> Solved:
    """Go towards the minimum of the loss's quadratic model over all targets' weights at once.

    ``min_D <G, D> + 1/2 <D, H D>`` with the gradient G of the mean calibration loss and its Gauss-Newton matrix H,
    cross terms between targets included, by conjugate gradients preconditioned with K-FAC and stopped early (Martens
    2010, Hessian-free optimization; Martens and Grosse 2015, arXiv 1503.05671).  The signal is the singular values of
    ``S^1/2 D_t A^1/2``, descending; their squares are twice what the directions of target t contribute to the model's
    decrease by K-FAC's account, in nats.

    Args:
        context: The model, the targets, the seed, and ``newton_iterations`` among the options.
        batches: The calibration batches, gone through once for each iteration and once before.
        how: ``Collecting``: the loss and whom to tell of the progress.

    Returns:
        The spectrum; zero for embeddings and stacked experts, which stay as they are.

    Raises:
        ProfileError: Something is not finite, or cannot be differentiated.
        UserError: No target, loss or batch that this works for.
    """
    chosen, left_out = solvable(context, NAME)
    refuse(how, NAME)
    if not batches:
        raise UserError("there are no calibration batches; give at least one batch with labels")
    found = step_towards(context, chosen, batches, how, Progress.over(context, batches, how))
    values = np.zeros((len(context.targets), width_of(context)), dtype=np.float64)
    for index, matrix in zip(chosen, found.measured, strict=True):
        spectrum = singular_values(matrix[None])[0].cpu().numpy()[: values.shape[1]]
        values[index, : len(spectrum)] = spectrum
    notes = {**found.notes(), "left_as_they_are": left_out}
    problem = found.problem
    return Solved(values, problem.examples, len(batches), problem.loss_name, problem.mean_loss, {"newton": notes})


class Progress:
    """Turns rounds over the batches into examples done."""

    def __init__(self, tell: Callable[[int], None] | None, rounds: int, batches: int, examples: int) -> None:
        """Start at nothing.

        Args:
            tell: Called with a number of examples, or ``None``.
            rounds: Rounds over all batches in all.
            batches: Batches of a round.
            examples: Examples of a round.
        """
        self._tell, self._all, self._examples, self._done = tell, rounds * batches, examples, 0

    @classmethod
    def over(cls, context: Context, batches: Sequence[Mapping[str, Any]], how: Any) -> Progress:
        """Make the progress of a solution over some batches."""
        examples = sum(count_examples(for_model(batch)) for batch in batches)
        return cls(how.progress, iterations_of(context.options) + 1, len(batches), examples)

    def one(self, number: int) -> None:
        """Count a batch; its number within a round is not looked at."""
        self._done += 1
        if self._tell is not None:
            self._tell(int(min(1.0, self._done / self._all) * self._examples))

    def end(self) -> None:
        """Say that all is done, however soon the iterations ended."""
        if self._tell is not None:
            self._tell(self._examples)


@dataclass(frozen=True)
class Step:
    """Where the conjugate gradients stopped.

    Attributes:
        measured: Each target's part of the step in K-FAC's measure, ``S^1/2 D A^1/2``, ``[out, in]``.
        problem: The objective.
        decreases: What the quadratic model predicts after each iteration, in nats.
        stopped: Why they ended.
    """

    measured: list[Tensor]
    problem: Objective
    decreases: Sequence[float]
    stopped: str

    def notes(self) -> dict[str, Any]:
        """Return what a profile's ``meta`` says of the step."""
        return {
            "iterations": len(self.decreases),
            "passes": passes(len(self.decreases)),
            "predicted_decrease": self.decreases[-1] if self.decreases else 0.0,
            "decrease_by_iteration": list(self.decreases),
            "stopped": self.stopped,
        }


def step_towards(
    context: Context, chosen: Sequence[int], batches: Sequence[Mapping[str, Any]], how: Any, progress: Progress
) -> Step:
    """Go towards the minimum of the quadratic model of the mean loss of some batches.

    Args:
        context: The model, the targets, the seed, and ``newton_iterations`` among the options.
        chosen: Places of the targets that are solved for.
        batches: The batches.
        how: ``Collecting``.
        progress: Told of every batch.

    Returns:
        The step.
    """
    targets = [context.targets[index] for index in chosen]
    with undisturbed(context.model, {}), torch.enable_grad():
        problem = Objective(context.model, targets, batches, how.loss, context.seed)
        gradient, moments = problem.begin(progress.one)
        factors = moments.factors(problem.examples)
        damping = RELATIVE_DAMPING * sum(f.size for f in factors) / sum(matrix.numel() for matrix in gradient)

        def product(vector: Vector) -> Vector:
            curved = problem.product(vector, progress.one)
            return [matrix.add_(part, alpha=damping) for matrix, part in zip(curved, vector, strict=True)]

        def precondition(vector: Vector) -> Vector:
            parts = zip(targets, factors, vector, strict=True)
            return [oriented(target, factor.divided(oriented(target, matrix))) for target, factor, matrix in parts]

        rounding = max(torch.finfo(weight.dtype).eps for weight in problem.weights)
        found = minimise(product, gradient, precondition, iterations_of(context.options), rounding)
        parts = zip(targets, factors, found.step, strict=True)
        measured = [factor.weighed(oriented(target, matrix)) for target, factor, matrix in parts]
    progress.end()
    return Step(measured, problem, found.decreases, found.stopped)


def width_of(context: Context) -> int:
    """Return how many values are kept per target."""
    return min(MAX_VALUES, max((target.max_rank for target in context.targets), default=0))


def oriented(target: Target, matrix: Tensor) -> Tensor:
    """Return a parameter as ``[out, in]``, or such a matrix as the parameter.

    Args:
        target: Whose.
        matrix: Of either layout.

    Returns:
        A view; GPT-2's ``Conv1D`` keeps its weight transposed.
    """
    return matrix.T if target.kind == "conv1d" else matrix


def refuse(how: Any, name: str) -> None:
    """Refuse what a solution in several passes cannot do.

    Args:
        how: ``Collecting``.
        name: The signal's name.

    Raises:
        UserError: One option cannot be used.
    """
    from torch import distributed

    several = how.all_processes and distributed.is_available() and distributed.is_initialized()
    if several and distributed.get_world_size() > 1:
        raise UserError(
            f"signal {name!r} is solved for in one process and this is one of {distributed.get_world_size()}; measure "
            "it in one, with all_processes=False and all the batches"
        )


def solvable(context: Context, name: str) -> tuple[list[int], str]:
    """Return the places of the targets that are solved for, and a sentence about the others.

    Args:
        context: The model and the targets.
        name: The signal's name.

    Returns:
        Places and a sentence, empty where there are no others.

    Raises:
        ProfileError: A target's weight is not here to be differentiated by.
        UserError: There is no linear target.
    """
    chosen, others = [], []
    modules = dict(context.model.named_modules())
    for index, target in enumerate(context.targets):
        if target.kind not in ("linear", "conv1d"):
            others.append(target.name)
            continue
        weight = modules[target.name]._parameters.get("weight")
        if weight is None or is_packed(modules[target.name]) or not weight.is_floating_point():
            raise ProfileError(
                f"target {target.name!r} is quantised, and signal {name!r} differentiates by the weights themselves; "
                "measure it on the base model before quantisation"
            )
        if weight.is_meta:
            raise ProfileError(
                f"target {target.name!r} is kept off its device, where signal {name!r} cannot differentiate by it; "
                "exclude it, or give it a device in the device_map"
            )
        shape = target.shape[::-1] if target.kind == "conv1d" else target.shape
        if hasattr(weight, "device_mesh") or tuple(weight.shape) != tuple(shape):
            raise ProfileError(
                f"target {target.name!r} is spread over several processes; measure {name!r} on the whole model in one"
            )
        chosen.append(index)
    if not chosen:
        raise UserError(
            f"signal {name!r} solves for linear layers, of which placement chose none; choose one such as 'all-linear'"
        )
    if not others:
        return chosen, ""
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return chosen, f"{others[0]}{more}: embeddings and stacked experts are not solved for, and their values are zero"
