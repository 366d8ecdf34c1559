"""Students trained together are what peft and torch.optim would make of each alone."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model

from reference.lab import kl_loss
from tailora.lab.optimizer import BatchedAdamW, cosine
from tailora.lab.problems import build
from tailora.lab.spec import Planting, ProblemSpec, Shape
from tailora.lab.students import Stack, Student, train
from tailora.plans import plan

STEPS = 6


def tiny(architecture="llama", **fields):
    shape = Shape(hidden=16, inner=24, layers=2, vocabulary=29)
    planting = Planting(low=2, high=4)
    given = {"length": 6, "batch": 3, "evaluation": 20, "calibration": 8, **fields}
    return build(ProblemSpec(family="tiny", architecture=architecture, shape=shape, planting=planting, **given))


def double(problem):
    problem.base.double()
    problem.teacher.double()
    return problem


def peft_twin(problem, made, stack, place):
    """Wrap the base with the plan's LoraConfig and give it the student's initial factors."""
    model = get_peft_model(copy.deepcopy(problem.base), made.lora_config())
    factors = {}
    for name, rank in made.ranks.items():
        if rank:
            layer = model.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.data = stack.layers[name].a[place, :rank].detach().clone()
            layer.lora_B["default"].weight.data = stack.layers[name].b[place, :, :rank].detach().clone()
            factors[name] = layer
    return model, factors


@pytest.mark.parametrize(
    ("architecture", "recipe"),
    [("llama", "random-rank"), ("gpt2", "lora"), ("bert", "ffn-only"), ("t5", "random-rank")],
)
def test_a_student_is_a_peft_model_trained_with_the_plans_config(architecture, recipe):
    problem = double(tiny(architecture))
    plans = [plan(list(problem.targets), name, "r=2", seed=3) for name in (recipe, "attention-only")]
    rates = [3e-2, 1e-2]
    students = [Student(made.ranks, rate) for made, rate in zip(plans, rates, strict=True)]
    stack = Stack(problem.base, problem.targets, students)
    twins = [peft_twin(problem, made, stack, place) for place, made in enumerate(plans)]
    batches = [batch for batch, _ in zip(problem.training(), range(STEPS), strict=False)]
    train([stack], batches, STEPS)
    for place, ((model, layers), rate) in enumerate(zip(twins, rates, strict=True)):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for batch in batches:
            optimizer.zero_grad()
            kl_loss(model, batch).backward()
            optimizer.step()
            schedule.step()
        assert layers
        for name, layer in layers.items():
            rank = plans[place].ranks[name]
            mine = stack.layers[name]
            for found, expected in (
                (mine.a[place, :rank], layer.lora_A["default"].weight),
                (mine.b[place, :, :rank], layer.lora_B["default"].weight),
            ):
                assert torch.allclose(found, expected, rtol=0, atol=1e-9), name
            assert mine.b[place].abs().max() > 1e-3, "nothing was learned"
            assert not mine.a[place, rank:].any()
            assert not mine.b[place, :, rank:].any()
        with torch.no_grad():
            assert stack.evaluate(problem.held_out)[place] == pytest.approx(
                float(kl_loss(model, problem.held_out)), abs=1e-9
            )


def test_batched_adamw_is_torchs():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    rates = torch.tensor([1e-3, 1e-2, 0.3], dtype=torch.float64)
    mine = start.clone().requires_grad_()
    batched = BatchedAdamW([mine], rates)
    alone = [start[place].clone().requires_grad_() for place in range(3)]
    theirs = [torch.optim.AdamW([p], lr=float(rate)) for p, rate in zip(alone, rates, strict=True)]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 10) for o in theirs]
    for step in range(10):
        gradient = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
        mine.grad = gradient.clone()
        batched.step(cosine(step, 10))
        for place in range(3):
            alone[place].grad = gradient[place].clone()
            theirs[place].step()
            schedules[place].step()
    assert torch.allclose(mine, torch.stack(alone), rtol=0, atol=1e-12)


def test_what_a_student_learns_does_not_depend_on_its_neighbours():
    problem = double(tiny())
    uniform = {target.name: 1 for target in problem.targets}
    wild = {target.name: 4 for target in problem.targets[:3]}
    alone = Stack(problem.base, problem.targets, [Student(uniform, 1e-2)])
    together = Stack(problem.base, problem.targets, [Student(wild, 1e9), Student(uniform, 1e-2)])
    train([alone, together], problem.training(), STEPS)
    assert alone.evaluate(problem.held_out)[0] == pytest.approx(together.evaluate(problem.held_out)[1], abs=1e-12)


def test_an_untrained_student_is_the_base():
    problem = tiny()
    before = copy.deepcopy(problem.base.state_dict())
    stack = Stack(problem.base, problem.targets, [Student({}, 0.0), Student({problem.targets[0].name: 2}, 1e-2)])
    expected = float(kl_loss(problem.base, problem.held_out))
    assert stack.evaluate(problem.held_out) == pytest.approx([expected, expected], rel=1e-5)
    train([stack], problem.training(), 1)
    assert all(torch.equal(before[name], value) for name, value in problem.base.state_dict().items())
