"""Contestants that train a pilot: what they decide, where they go on, and what they pay."""

from __future__ import annotations

import pytest
import torch

from small_problems import small
from tailora.errors import UserError
from tailora.lab.pilots import pilot_all
from tailora.lab.problems import build
from tailora.lab.solve import Settings, solve
from tailora.lab.students import Stack, Student, train
from tailora.pilots import truncated, update_of

RATES = (1e-2, 3e-2)
STEPS = 10


@pytest.fixture(scope="module")
def problem():
    return build(small(batch=4))


def test_pilots_keep_to_the_budget_and_pay_for_what_is_not_training(problem):
    names = ["lora", "oracle", "pilot", "pilot-dropped", "pilot-uniform"]
    found, left_out = pilot_all(problem, names, "r=1", RATES, STEPS)
    assert not left_out
    assert [one.name for one in found] == names[2:]
    budget = sum(target.cost(1) for target in problem.targets)
    kept, dropped, uniform = found
    for one in found:
        assert len(one.courses) == len(RATES)
        assert all(0.9 * budget < course.params <= budget for course in one.courses)
        assert [course.rate for course in one.courses] == list(RATES)
    assert all(set(course.ranks.values()) == {1} for course in uniform.courses)
    assert any(set(course.ranks.values()) != {1} for course in kept.courses)
    assert [course.ranks for course in dropped.courses] == [course.ranks for course in kept.courses], "one pilot"
    assert [course.begin for course in kept.courses] == [4, 4]
    assert [(course.begin, course.start) for course in dropped.courses] == [(0, None)] * 2
    calibration, step = 8 * 6, 4 * 6
    assert [one.token_passes for one in found] == [2 * calibration, 2 * calibration + 4 * step, 0]


def test_a_pilot_that_is_kept_goes_on_with_what_it_learned(problem):
    """At its own rank nothing is cut off, so the function of the model is the pilot's, and then it learns on."""
    ranks = {target.name: 3 for target in problem.targets}
    pilot = Stack(problem.base, problem.targets, [Student(ranks, 2e-2, scale=0.5)])
    train([pilot], problem.training(), STEPS, until=6)
    start = {}
    for name, layer in pilot.layers.items():
        a, b = truncated(update_of(layer.a[0], layer.b[0], 0.5), 3, scale=2.0)
        start[name] = (a.float(), b.float())
    later = Stack(problem.base, problem.targets, [Student(ranks, 2e-2, start=start)], begin=6)
    before = later.evaluate(problem.validation)[0]
    assert before == pytest.approx(pilot.evaluate(problem.validation)[0], rel=1e-5)
    untouched = Stack(problem.base, problem.targets, [Student({}, 0.0)])
    assert before < untouched.evaluate(problem.validation)[0]
    train([later], problem.training(), STEPS)
    assert later.evaluate(problem.validation)[0] < before


def test_later_students_take_the_later_batches(problem):
    """Joining at step 7 of 10 with a start equals training alone on batches 8 to 10 with their learning rates."""
    ranks = {target.name: 2 for target in problem.targets}
    batches = [batch for batch, _ in zip(problem.training(), range(STEPS), strict=False)]
    both = [Stack(problem.base, problem.targets, [Student(ranks, 2e-2)], begin=7) for _ in range(2)]
    train([both[0]], batches, STEPS)
    spoiled = [{**batch, "input_ids": torch.zeros_like(batch["input_ids"])} for batch in batches[:7]]
    train([both[1]], [*spoiled, *batches[7:]], STEPS)
    one, two = (stack.evaluate(problem.validation)[0] for stack in both)
    assert one == two
    whole = Stack(problem.base, problem.targets, [Student(ranks, 2e-2)])
    train([whole], batches, STEPS)
    assert whole.evaluate(problem.validation)[0] != one


def test_a_record_says_where_contestants_took_over():
    settings = Settings(contestants=("pilot", "pilot-dropped"), budget="r=1", steps=6, rates=(1e-2,), stack=4)
    record = solve(small(batch=4), settings)
    entries = record["contestants"]
    assert list(entries) == ["lora", "oracle", "pilot", "pilot-dropped"]
    assert [entry["begin"] for entry in entries.values()] == [0, 0, 2, 0]
    assert entries["pilot"]["ranks"] == entries["pilot-dropped"]["ranks"]
    assert entries["pilot"]["extra_compute"] == pytest.approx(2 * 8 / (6 * 4))
    assert entries["pilot-dropped"]["extra_compute"] == pytest.approx((2 * 8 + 2 * 4) / (6 * 4))
    assert all(entry["loss"] < record["untrained"] for entry in entries.values())


def test_a_pilot_that_diverges_is_left_out(problem):
    found, left_out = pilot_all(problem, ["pilot"], "r=1", (9e9,), STEPS)
    assert not found
    assert left_out == {"pilot": "its pilot diverged at every learning rate"}


def test_a_pilot_of_one_step_training_is_refused(problem):
    with pytest.raises(UserError, match="needs at least 2 training steps"):
        pilot_all(problem, ["pilot"], "r=1", RATES, 1)
