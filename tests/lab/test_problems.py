"""Planted problems are what their description says, and nothing else's draws change them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from tailora.errors import UserError
from tailora.lab.families import FAMILIES, STANDARD
from tailora.lab.planting import planted_ranks
from tailora.lab.problems import build, private_generator
from tailora.lab.spec import ARCHITECTURES, Planting, ProblemSpec, Shape
from tailora.targets import Target, find_targets

SMALL = Shape(hidden=16, inner=24, layers=2, vocabulary=29)


def spec(**fields):
    given = {"shape": SMALL, "length": 6, "batch": 3, "evaluation": 10, "calibration": 8, **fields}
    return ProblemSpec(family="tiny", **given)


def many(depths=12):
    roles = ("attention.query", "attention.value", "ffn.up")
    return [Target(f"layers.{d}.{role}", role, d, (20, 20)) for d in range(depths) for role in roles]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_teacher_differs_by_updates_of_the_planted_ranks(architecture):
    problem = build(spec(architecture=architecture, planting=Planting(low=1, high=5, size=0.5, decay=0.5)))
    linear = (t for t in find_targets(problem.base) if t.kind in ("linear", "conv1d") and t.role != "head")
    assert problem.targets == tuple(linear)
    teacher = dict(problem.teacher.named_parameters())
    for name, weight in problem.base.named_parameters():
        change = (teacher[name] - weight).double()
        rank = problem.planted.get(name.removesuffix(".weight"), 0)
        if rank == 0:
            assert not change.any(), name
            continue
        values = torch.linalg.svdvals(change)
        expected = problem.spectra[name.removesuffix(".weight")]
        assert torch.allclose(values[:rank], expected, rtol=1e-4)
        assert values[rank:].max() < 1e-5 * values[0]
        assert float(expected.norm() / weight.double().norm()) == pytest.approx(0.5)
        assert float(expected[-1] / expected[0]) == pytest.approx(rank**-0.5)
    assert any(problem.planted.values())


def test_equal_descriptions_give_equal_problems_and_leave_the_global_state_alone():
    state = torch.random.get_rng_state()
    first = build(spec(seed=5))
    batch = next(first.training())
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(99)
    again = build(spec(seed=5))
    other = build(spec(seed=6))
    assert torch.equal(batch["input_ids"], next(again.training())["input_ids"])
    assert torch.equal(first.held_out["loss_target"], again.held_out["loss_target"])
    assert not torch.equal(first.held_out["loss_target"], other.held_out["loss_target"])
    assert first.planted == again.planted


def test_the_splits_share_no_sequence():
    problem = build(spec())
    stream = problem.training()
    seen = [next(stream)["input_ids"] for _ in range(5)] + [batch["input_ids"] for batch in problem.calibration(3)]
    seen += [problem.validation["input_ids"], problem.held_out["input_ids"]]
    rows = torch.cat(seen)
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_limited_data_comes_round_again_in_a_new_order():
    problem = build(spec(sequences=5))
    stream = problem.training()
    rows = torch.cat([next(stream)["input_ids"] for _ in range(5)])
    pool, counts = torch.unique(rows, dim=0, return_counts=True)
    assert len(pool) == 5
    assert counts.tolist() == [3] * 5
    assert not torch.equal(rows[:5], rows[5:10])
    calibration = torch.cat([batch["input_ids"] for batch in problem.calibration()])
    assert {tuple(row) for row in calibration.tolist()} == {tuple(row) for row in pool.tolist()}


def test_sampled_labels_follow_the_teachers_distribution_and_noise_spreads_it():
    problem = build(spec(labels="sampled", noise=0.2, calibration=3000, length=2))
    batch = problem.calibration(3000)[0]
    with torch.no_grad():
        known = problem.teacher(input_ids=batch["input_ids"]).logits.softmax(-1)
    expected = (0.8 * known + 0.2 / known.shape[-1]).reshape(-1, known.shape[-1])
    found = torch.bincount(batch["loss_target"].reshape(-1), minlength=known.shape[-1]).double()
    spread = (expected * (1 - expected)).sum(0).double().sqrt()
    assert ((found - expected.sum(0)).abs() < 5 * spread).all()
    assert torch.allclose(problem.held_out["loss_target"].exp().sum(-1), torch.ones(10, 2))


def test_rank_laws():
    def draw(**fields):
        return planted_ranks(many(), Planting(**fields), private_generator(3, 1))

    drawn = draw(law="uniform", share=0.5, low=2, high=6)
    assert sum(rank > 0 for rank in drawn.values()) == 18
    assert set(drawn.values()) == {0, 2, 3, 4, 5, 6}
    power = draw(law="power", share=0.2, high=12, exponent=1.0)
    assert sorted((r for r in power.values() if r), reverse=True) == [12, 6, 4, 3, 2, 2, 2]
    assert set(draw(law="same", share=1.0, high=3).values()) == {3}
    roles = draw(placement="{roles:2}", share=1.0, low=1, high=2)
    assert len({name.split(".", 2)[2] for name, rank in roles.items() if rank}) == 2
    depths = {int(n.split(".")[1]) for n, r in draw(placement="{layers:3}", share=1.0, low=1, high=2).items() if r}
    assert len(depths) == 3
    assert max(depths) - min(depths) == 2


def test_correlated_ranks_have_alike_neighbours():
    def likeness(memory):
        total = 0
        for seed in range(20):
            planting = Planting(law="correlated", share=0.5, low=1, high=10, memory=memory)
            ranks = planted_ranks(many(), planting, private_generator(seed, 1))
            total += sum(abs(ranks[t.name] - ranks[f"layers.{t.depth + 1}.{t.role}"]) for t in many() if t.depth < 11)
        return total

    assert likeness(0.95) < 0.6 * likeness(0.0)


def test_sizes_by_rank_and_cost():
    problem = build(spec(planting=Planting(law="power", share=1.0, high=8, by_rank=True, size=0.5)))
    firsts = []
    for name, values in problem.spectra.items():
        weight = problem.base.get_submodule(name).weight.double().norm()
        firsts.append(float(values[0] / weight))
    assert max(firsts) == pytest.approx(min(firsts)), "every direction is as strong in every target"
    everything = build(dataclasses.replace(FAMILIES["everything"](0), shape=SMALL))
    worth = {
        float((values**2).sum() / everything.base.get_submodule(name).weight.double().norm() ** 2)
        / next(t for t in everything.targets if t.name == name).cost(1)
        for name, values in everything.spectra.items()
    }
    assert max(worth) == pytest.approx(min(worth))


def test_families_build_and_descriptions_survive_json():
    assert set(STANDARD) <= set(FAMILIES.names())
    for entry in FAMILIES:
        described = entry.value(7)
        assert described.family == entry.name
        assert described.seed == 7
        assert ProblemSpec.from_dict(described.to_dict()) == described
        assert described.hash != entry.value(8).hash


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"planting": Planting(law="linear")}, "unknown rank law 'linear'"),
        ({"planting": Planting(share=0.0)}, "planting.share=0.0"),
        ({"planting": Planting(low=5, high=4)}, "planting.low=5"),
        ({"labels": "hard"}, "unknown kind of labels"),
        ({"noise": 1.0}, "noise=1.0"),
        ({"sequences": 0}, "sequences=0"),
    ],
)
def test_wrong_descriptions_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        spec(**fields)


def test_unknown_architectures_are_refused():
    with pytest.raises(UserError, match="did you mean 'llama'"):
        build(spec(architecture="lama"))
    with pytest.raises(UserError, match=r"holds no config\.json"):
        build(spec(architecture="no/such/folder"))


def test_a_saved_model_can_be_the_base():
    folder = Path(os.environ.get("TAILORA_TEST_DATA", Path(__file__).parents[3] / "shared")) / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    problem = build(
        spec(architecture=str(folder), tokens="model", sequences=4, planting=Planting(low=1, high=3, share=0.1))
    )
    assert len(problem.targets) == 35
    batch = next(problem.training())
    assert batch["input_ids"].shape == (3, 6)
    assert batch["loss_target"].exp().sum(-1).allclose(torch.ones(3, 6), atol=1e-4)
