"""Contestants that train a larger adapter first: the pilot, what they read from it, and where they start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tailora.errors import TailoraError
from tailora.lab.contestants import read_contestant
from tailora.lab.courses import Course
from tailora.lab.problems import PlantedProblem
from tailora.lab.students import Stack, Student, train
from tailora.pilots import PATH, SPECTRUM, WORTH, Update, truncated, update_of, worths
from tailora.planning import resolve_rank
from tailora.recipes import Recipe
from tailora.takeover import pilot_steps


@dataclass(frozen=True)
class Piloted:
    """What a contestant with a pilot decided.

    Attributes:
        name: The contestant.
        courses: One for each learning rate, ``None`` where its pilot diverged.
        token_passes: Forward and backward passes beside the training that is kept, in tokens.
    """

    name: str
    courses: tuple[Course | None, ...]
    token_passes: float


@dataclass(frozen=True)
class _Learned:
    """What a pilot found at one learning rate."""

    updates: Mapping[str, Update]
    worth: Mapping[str, Tensor]


def pilot_all(
    problem: PlantedProblem, names: Sequence[str], budget: str, rates: Sequence[float], steps: int
) -> tuple[list[Piloted], dict[str, str]]:
    """Let every contestant that has a pilot train it and decide.

    Equal pilots are trained once.  A pilot takes the training's own first batches; what its directions are worth is
    measured on the calibration sequences, which it has not seen.

    Args:
        problem: The problem.
        names: Contestants; those without a pilot are passed over.
        budget: What each may spend when its pilot is over.
        rates: Learning rates of the training.
        steps: Steps of the training.

    Returns:
        The decisions, and of those who could not decide at any learning rate the reason.
    """
    from tailora.lab.contestants import ORACLE
    from tailora.plans import plan

    found, left_out = [], {}
    known: dict[Any, list[_Learned | None]] = {}
    allowed = plan(list(problem.targets), "lora", budget).budget_params
    for name in names:
        if name == ORACLE:
            continue
        recipe, overrides = read_contestant(name)
        slot = recipe.pilot
        if slot is None:
            continue
        length = pilot_steps(slot.share, steps)
        rank, scale = _size(problem, recipe, allowed)
        key = (rank, length, scale)
        if key not in known:
            known[key] = _learn(problem, rank, length, scale, rates, steps)
        courses: list[Course | None] = []
        for rate, learned in zip(rates, known[key], strict=True):
            try:
                course = None if learned is None else _course(problem, recipe, overrides, budget, learned, length, rate)
                courses.append(course)
            except TailoraError as error:
                left_out[name] = str(error)
                courses.append(None)
        if not any(courses):
            left_out.setdefault(name, "its pilot diverged at every learning rate")
            continue
        left_out.pop(name, None)
        passes = 0.0 if slot.keep else float(length * problem.step_tokens)
        if WORTH in recipe.signals:
            passes += len(PATH) * problem.spec.calibration * problem.spec.length
        found.append(Piloted(name, tuple(courses), passes))
    return found, left_out


def _size(problem: PlantedProblem, recipe: Recipe, allowed: int) -> tuple[int, float]:
    """Return the pilot's rank and its scale ``alpha / r``."""
    assert recipe.pilot is not None
    uniform = allowed / sum(target.cost(1) for target in problem.targets)
    rank = resolve_rank(recipe.pilot.rank, uniform)
    return rank, recipe.adapter.scaling.scale * (recipe.pilot.scale or min(1.0, uniform / rank))


def _learn(
    problem: PlantedProblem, rank: int, length: int, scale: float, rates: Sequence[float], steps: int
) -> list[_Learned | None]:
    """Train a pilot at every learning rate."""
    ranks = {target.name: min(rank, target.max_rank) for target in problem.targets}
    students = [Student(ranks, rate, scale=scale, seed=problem.spec.seed) for rate in rates]
    stack = Stack(problem.base, problem.targets, students)
    train([stack], problem.training(), steps, until=length)
    gradients = _path_gradients(stack, problem)
    found: list[_Learned | None] = []
    for place, student in enumerate(students):
        updates, worth = {}, {}
        for name, layer in stack.layers.items():
            a, b = layer.a[place, : ranks[name]], layer.b[place, :, : ranks[name]]
            if not (a.isfinite().all() and b.isfinite().all()):
                break
            updates[name] = update_of(a, b, student.scale)
            worth[name] = worths(updates[name], a, gradients[name][place, :, : ranks[name]], student.scale)
        whole = len(worth) == len(stack.layers) and all(bool(values.isfinite().all()) for values in worth.values())
        found.append(_Learned(updates, worth) if whole else None)
    return found


def _path_gradients(stack: Stack, problem: PlantedProblem) -> dict[str, Tensor]:
    """Return every student's gradient in its ``B``, averaged over the way to its update, ``[students, out, rank]``."""
    whole = {name: layer.b.detach().clone() for name, layer in stack.layers.items()}
    found = {name: torch.zeros_like(b) for name, b in whole.items()}
    batches = problem.calibration()
    total = sum(len(batch["input_ids"]) for batch in batches)
    for share, weight in PATH:
        for name, layer in stack.layers.items():
            layer.b.data.copy_(share * whole[name])
        for batch in batches:
            stack.losses(batch).sum().backward()
            for name, layer in stack.layers.items():
                assert layer.b.grad is not None
                found[name] += weight * len(batch["input_ids"]) / total * layer.b.grad
                layer.a.grad = layer.b.grad = None
    for name, layer in stack.layers.items():
        layer.b.data.copy_(whole[name])
    return found


def _course(
    problem: PlantedProblem,
    recipe: Recipe,
    overrides: Mapping[str, Any],
    budget: str,
    learned: _Learned,
    length: int,
    rate: float,
) -> Course:
    """Plan from what a pilot learned, and make the start where it is kept."""
    from tailora.plans import plan
    from tailora.profiles import Profile

    signals = {
        SPECTRUM: _rows(problem, {name: update.values for name, update in learned.updates.items()}),
        WORTH: _rows(problem, learned.worth),
    }
    made = plan(Profile(problem.targets, signals, {}), recipe, budget, seed=problem.spec.seed, **overrides)
    ranks = dict(made.ranks)
    assert recipe.pilot is not None
    if not recipe.pilot.keep:
        return Course(rate, ranks, made.total_params)
    scale = recipe.adapter.scaling.scale
    start = {}
    for name, rank in ranks.items():
        if rank:
            a, b = truncated(learned.updates[name], rank, scale)
            start[name] = (a.to(torch.get_default_dtype()), b.to(torch.get_default_dtype()))
    return Course(rate, ranks, made.total_params, length, start)


def _rows(problem: PlantedProblem, values: Mapping[str, Tensor]) -> np.ndarray:
    """Return one row a target, padded with zeros."""
    width = max(len(row) for row in values.values())
    rows = np.zeros((len(problem.targets), width))
    for place, target in enumerate(problem.targets):
        row = values[target.name].numpy()
        rows[place, : len(row)] = row
    return rows
