"""Who trains how: the contestants' courses, and the distinct students among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tailora.lab.problems import Batch, PlantedProblem
from tailora.lab.students import Stack, Student, train

Factors = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Course:
    """How a contestant trains at one learning rate.

    Attributes:
        rate: The learning rate.
        ranks: Name of every candidate to its rank.
        params: What these cost.
        begin: The step at which it takes over from its pilot; 0 where it starts from nothing.
        start: The factors it takes over.
    """

    rate: float
    ranks: Mapping[str, int]
    params: int
    begin: int = 0
    start: Factors | None = None

    @property
    def key(self) -> Hashable:
        """What decides what a student of a problem learns: equal keys learn the same."""
        start = None if self.start is None else id(self.start)
        return self.begin, self.rate, start, tuple(sorted(self.ranks.items()))


class Classes:
    """All students of a problem, equal ones once, in stacks of those who begin together.

    Attributes:
        students: How many there are.
    """

    def __init__(self, problem: PlantedProblem, courses: Sequence[Course], size: int) -> None:
        """Make the students.

        Args:
            problem: The problem.
            courses: Everybody's courses.
            size: Students of a stack; more of them leave the processor's cache.
        """
        distinct = {course.key: course for course in courses}
        self._stacks: list[Stack] = []
        self._places: dict[Hashable, int] = {}
        for begin in sorted({course.begin for course in distinct.values()}):
            own = [course for course in distinct.values() if course.begin == begin]
            for start in range(0, len(own), size):
                part = own[start : start + size]
                self._places |= {course.key: len(self._places) + place for place, course in enumerate(part)}
                students = [
                    Student(course.ranks, course.rate, seed=problem.spec.seed, start=course.start) for course in part
                ]
                self._stacks.append(Stack(problem.base, problem.targets, students, begin=begin))
        self._problem, self.students = problem, len(self._places)
        # The batch is kept too, so that its id stays its own.
        self._scores: dict[int, tuple[Batch, list[float]]] = {}

    def train(self, steps: int, progress: Callable[[int], None] | None = None) -> None:
        """Train everybody on the problem's batches.

        Args:
            steps: Steps of the schedule.
            progress: Called with the number of steps done.
        """
        train(self._stacks, self._problem.training(), steps, progress=progress)

    def losses(self, batch: Batch, courses: Sequence[Course | None]) -> list[float]:
        """Return the losses of some courses.

        Args:
            batch: A large batch.
            courses: Courses that were among everybody's; ``None`` for one that was never begun.

        Returns:
            Nats per position, infinite where training diverged.
        """
        scores = self._evaluated(batch)
        return [math.inf if course is None else scores[self._places[course.key]] for course in courses]

    def _evaluated(self, batch: Batch) -> list[float]:
        """Return everybody's loss on a batch, looked up where it was asked for before."""
        if id(batch) not in self._scores:
            self._scores[id(batch)] = (batch, [value for stack in self._stacks for value in stack.evaluate(batch)])
        return self._scores[id(batch)][1]
