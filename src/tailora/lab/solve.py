"""One planted problem solved: every contestant's plan trained at every learning rate, and a record of it all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tailora._version import __version__
from tailora.artifacts import content_hash
from tailora.errors import TrainingError, UserError
from tailora.lab.spec import ProblemSpec

FORMAT = "tailora-lab/2"
RATES = (8e-3, 1.6e-2, 3.2e-2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the problems of a lab are solved.

    Attributes:
        contestants: Who competes, as ``read_contestant`` takes them; uniform LoRA and the oracle take part always.
        budget: What each may spend.
        steps: Training steps.
        rates: Peak learning rates, the same for all; each contestant's is chosen on the validation batch.
        stack: Students trained as one batch; more of them leave the processor's cache.
    """

    contestants: tuple[str, ...]
    budget: str = "r=2"
    steps: int = 200
    rates: tuple[float, ...] = RATES
    stack: int = 24

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if self.steps < 1:
            raise UserError(f"steps={self.steps} of the laboratory must be at least 1; raise it")
        if not self.rates or not all(0 < rate < 10 for rate in self.rates):
            raise UserError(f"rates={list(self.rates)} of the laboratory must be numbers above 0; correct them")
        if self.stack < 1:
            raise UserError(f"stack={self.stack} of the laboratory must be at least 1; raise it")

    @property
    def everybody(self) -> tuple[str, ...]:
        """Uniform LoRA, the oracle and the others, each once."""
        from tailora.lab.contestants import ORACLE, UNIFORM

        return tuple(dict.fromkeys((UNIFORM, ORACLE, *self.contestants)))


def record_key(spec: ProblemSpec, settings: Settings) -> str:
    """Return the hash under which a problem's record is found again: of everything that decides its numbers."""
    content = {"format": FORMAT, "spec": spec.to_dict(), "settings": asdict(settings)}
    # How many students share a batch does not change what they learn.
    content["settings"].pop("stack")
    return content_hash(content)


def solve(
    spec: ProblemSpec, settings: Settings, *, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Solve a planted problem.

    Args:
        spec: The problem.
        settings: Who competes, and how.
        progress: Called with steps done and steps in all.

    Returns:
        A JSON-ready record: the problem, and of every contestant its ranks, cost, losses at every learning rate
        (validation and held-out, nats per position) and the chosen one.

    Raises:
        UserError: A contestant or the budget cannot be read.
        TrainingError: Uniform LoRA or the oracle diverged at every learning rate.
    """
    from tailora.lab.contestants import decide
    from tailora.lab.courses import Classes, Course
    from tailora.lab.pilots import pilot_all
    from tailora.lab.problems import build
    from tailora.lab.students import Stack, Student

    started = time.perf_counter()
    problem = build(spec)
    decisions, left_out = decide(problem, settings.everybody, settings.budget)
    decided = time.perf_counter()
    piloted, more_left_out = pilot_all(problem, settings.everybody, settings.budget, settings.rates, settings.steps)
    courses: Mapping[str, Sequence[Course | None]] = {
        decision.name: [Course(rate, decision.ranks, decision.params, start=decision.start) for rate in settings.rates]
        for decision in decisions
    } | {pilot.name: pilot.courses for pilot in piloted}
    passes = {one.name: one.token_passes for one in (*decisions, *piloted)}
    classes = Classes(problem, [course for own in courses.values() for course in own if course], settings.stack)
    untrained = Stack(problem.base, problem.targets, [Student({}, 0.0)]).evaluate(problem.held_out)[0]
    tell = None if progress is None else lambda done: progress(done, settings.steps)
    classes.train(settings.steps, tell)
    training_tokens = settings.steps * problem.step_tokens
    entries: dict[str, Any] = {}
    for name in (name for name in settings.everybody if name in courses):
        validation, held_out = (
            classes.losses(batch, courses[name]) for batch in (problem.validation, problem.held_out)
        )
        chosen = choose_rate(name, settings.rates, validation, held_out)
        course = courses[name][settings.rates.index(chosen["rate"])]
        assert course is not None
        entries[name] = chosen | {
            "ranks": dict(course.ranks),
            "params": course.params,
            "begin": course.begin,
            "extra_compute": passes[name] / training_tokens,
        }
    left_out |= more_left_out
    return {
        "format": FORMAT,
        "key": record_key(spec, settings),
        "spec": spec.to_dict(),
        "settings": asdict(settings) | {"contestants": list(settings.contestants), "rates": list(settings.rates)},
        "targets": [target.to_dict() for target in problem.targets],
        "planted": dict(problem.planted),
        "untrained": untrained,
        "contestants": entries,
        "left_out": left_out,
        "seconds": {
            "decide": round(decided - started, 3),
            "train": round(time.perf_counter() - decided, 3),
            "students": classes.students,
        },
        "versions": {"tailora": __version__},
    }


def choose_rate(
    name: str,
    rates: Sequence[float],
    validation: Sequence[float],
    held_out: Sequence[float],
) -> dict[str, Any]:
    """Choose the learning rate on the validation batch and report the held-out loss at it.

    Args:
        name: The contestant, for the error.
        rates: Learning rates.
        validation: Loss at each, infinite where training diverged.
        held_out: Loss at each.

    Returns:
        ``loss``, ``rate`` and both lists of losses with ``None`` for infinite ones.

    Raises:
        TrainingError: It diverged at every learning rate.
    """
    finite = [value if math.isfinite(value) else None for value in validation]
    best = min(range(len(rates)), key=lambda place: validation[place])
    if finite[best] is None or not math.isfinite(held_out[best]):
        raise TrainingError(
            f"{name!r} diverged at every learning rate of {', '.join(f'{rate:g}' for rate in rates)}; give lower rates"
        )
    return {
        "loss": held_out[best],
        "rate": rates[best],
        "validation": finite,
        "held_out": [value if math.isfinite(value) else None for value in held_out],
    }
