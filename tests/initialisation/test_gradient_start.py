"""Adapters that start along the calibration gradient: the right directions, nothing else changed, refusals in words."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

import models
import tailora
from reference import gradients_slow as slow
from reference import signals_slow
from small_problems import small
from tailora.errors import PlacementError, PlanMismatchError, UnknownNameError, UserError
from tailora.initialisation import INITIALISATIONS
from tailora.initialisation.gradient import rows
from tailora.lab.solve import Settings, solve
from tailora.placement import select
from tailora.profile_merging import load_with_sums
from tailora.recipes import load_recipe
from tailora.runs import execute
from tailora.targets import find_targets
from tiny_runs import review_config, text_config

SIGNALS = ("gradient_spectrum",)


def wide(batches):
    return [{k: v.double() if v.is_floating_point() else v for k, v in b.items()} for b in batches]


def measured(name, **options):
    model = models.build(name, dtype=torch.float64)
    return model, tailora.profile(model, wide(models.batches(name)), SIGNALS, keep_sums=True, **options)


def mean_gradients(name):
    """Every target's mean gradient by the loop of single examples."""
    model = models.build(name, dtype=torch.float64)
    targets = select(find_targets(model), "all-linear")
    examples = slow.example_gradients(model, targets, wide(models.batches(name)), slow.LOSSES[models.BUILDERS[name][1]])
    return {t.name: signals_slow.mean_gradient(examples, i)[0] for i, t in enumerate(targets)}


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "vit"])
def test_rows_span_what_captures_most_of_the_gradient(name):
    """No other two rows capture as much of G, by Eckart and Young; the loop's G is an oracle of its own."""
    _, profile = measured(name)
    whole = mean_gradients(name)
    found = rows(profile, dict.fromkeys(whole, 2))
    assert set(found) == {target for target, g in whole.items() if g.any()}
    for target, a in found.items():
        g = whole[target]
        values = torch.linalg.svdvals(g)
        held = min(2, int((values > 1e-6 * values[0]).sum()))
        assert a.shape == (held, g.shape[1])
        basis = a * 3**0.5
        assert torch.allclose(basis @ basis.T, torch.eye(held, dtype=torch.float64), atol=1e-10)
        captured = (g @ basis.T).square().sum()
        assert captured == pytest.approx(float(values[:held].square().sum()), rel=1e-8)
        assert all(row[row.abs().argmax()] > 0 for row in a), "the sign is settled"


def test_the_model_starts_as_it_was_and_the_first_step_is_the_gradients_best_approximation():
    model, profile = measured("llama")
    batch = models.batches("llama")[0]
    before = model(**batch).logits.detach()
    plan = tailora.plan(profile, "gradient-start", "r=2")
    whole = mean_gradients("llama")
    shares = {}
    for recipe in ("gradient-start", "lora"):
        fresh = models.build("llama", dtype=torch.float64)
        wrapped = tailora.plan(profile, recipe, "r=2").apply(fresh, profile=profile)
        assert torch.equal(wrapped(**batch).logits.detach(), before)
        shares[recipe] = {}
        for name, g in whole.items():
            a = wrapped.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.detach()
            basis, _ = torch.linalg.qr(a.T)
            shares[recipe][name] = float((g @ basis).square().sum() / g.square().sum())
    for name, g in whole.items():
        values = torch.linalg.svdvals(g).square()
        assert shares["gradient-start"][name] == pytest.approx(float(values[:2].sum() / values.sum()), rel=1e-8)
        assert shares["lora"][name] < shares["gradient-start"][name]
    assert set(plan.ranks.values()) == {2}


def test_rows_have_the_size_of_pefts():
    """The same learning rates fit: a row's mean square is 1 / (3 in), as Kaiming-uniform rows' on average."""
    model, profile = measured("bert")
    wrapped = tailora.plan(profile, "lora", "r=4").apply(model)
    sizes, plain = [], []
    for name, a in rows(profile, {t.name: 4 for t in profile.targets}).items():
        sizes += a.square().sum(dim=1).tolist()
        plain += wrapped.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.square().sum(1).tolist()
    assert sizes == pytest.approx([1 / 3] * len(sizes))
    assert np.mean(plain) == pytest.approx(1 / 3, rel=0.1)


def test_what_a_sketch_does_not_know_starts_as_peft_draws_it():
    config = tf.LlamaConfig(
        vocab_size=61, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=160, head_dim=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(config)
    targets = select(find_targets(model), "all-linear")
    name = next(target.name for target in targets if target.name.endswith("up_proj"))
    exact, close = (
        tailora.profile(model, models.batches("llama"), SIGNALS, keep_sums=True, options={"sketch": k}) for k in (0, 8)
    )
    best, near = (rows(profile, {name: 6})[name] for profile in (exact, close))
    assert best.shape[0] == 6
    assert near.shape[0] == 4, "half the sketch's width"
    plan = tailora.plan(exact, "gradient-start", "r=6")
    fresh = tailora.plan(exact, "lora", "r=6").apply(copy.deepcopy(model), seed=3)
    started = plan.apply(copy.deepcopy(model), seed=3, profile=close)
    layers = (wrapped.get_submodule(f"base_model.model.{name}") for wrapped in (fresh, started))
    plain, mine = (layer.lora_A["default"].weight.detach() for layer in layers)
    assert torch.allclose(mine[:4], near.float(), atol=1e-7)
    assert torch.equal(mine[4:], plain[4:])
    # This spectrum is flat and the sketch narrow, the worst case; half of the best is far above four rows by lot.
    g = torch.linalg.qr(best.T)[0]
    overlap = torch.linalg.svdvals(g.T @ torch.linalg.qr(near.T)[0]).square().sum() / 4
    assert overlap > 0.5 > 6 / 64


def uniform():
    return {"citation": "none", "allocation": {"name": "uniform"}}


def test_dora_starts_so_as_well():
    model, profile = measured("llama")
    batch = models.batches("llama")[0]
    before = model(**batch).logits.detach()
    recipe = {"name": "d", **uniform(), "initialisation": {"name": "gradient"}, "adapter": {"dora": True}}
    plan = tailora.plan(profile, recipe, "r=4")
    wrapped = plan.apply(model, profile=profile)
    assert torch.allclose(wrapped(**batch).logits, before, atol=1e-9)
    name, rank = next((n, r) for n, r in plan.ranks.items() if r)
    mine = wrapped.get_submodule(f"base_model.model.{name}").lora_A["default"].weight
    assert torch.allclose(mine, rows(profile, {name: rank})[name], atol=1e-12)


def test_a_saved_profile_serves_where_its_sums_were_kept(tmp_path):
    model, profile = measured("bert")
    profile.save(tmp_path / "p")
    again = load_with_sums(tmp_path / "p")
    ranks = {target.name: 3 for target in profile.targets}
    for name, mine in rows(profile, ranks).items():
        assert torch.equal(mine, rows(again, ranks)[name])
    with pytest.raises(UserError, match="keep_sums=True"):
        tailora.plan(again, "gradient-start", "r=2").apply(model, profile=tailora.Profile.load(tmp_path / "p"))


def test_wrong_input_is_told_in_a_sentence():
    model, profile = measured("bert")
    plan = tailora.plan(profile, "gradient-start", "r=2")
    with pytest.raises(UserError, match=r"plan.apply\(model, profile=\.\.\.\)"):
        plan.apply(model)
    other = tailora.profile(model, wide(models.batches("bert")), ("activation_second_moment",), keep_sums=True)
    with pytest.raises(UserError, match="profile with 'gradient_spectrum'"):
        plan.apply(model, profile=other)
    wider = dataclasses.replace(
        profile, targets=tuple(dataclasses.replace(t, shape=(t.shape[0], 2 * t.shape[1])) for t in profile.targets)
    )
    with pytest.raises(PlanMismatchError, match="in the profile that it is to start from; profile this model"):
        plan.apply(model, profile=wider)
    with pytest.raises(UserError, match="lacks the target 'elsewhere'"):
        rows(profile, {"elsewhere": 1})
    embedding = [target for target in find_targets(model) if target.kind == "embedding"]
    held = tailora.profile(model, wide(models.batches("bert")), SIGNALS, targets=embedding, keep_sums=True)
    with pytest.raises(UserError, match="only linear layers can start from the gradient"):
        rows(held, {embedding[0].name: 1})
    assert rows(held, {embedding[0].name: 0}) == {}
    recipe = {"name": "mine", **uniform(), "placement": "role:embedding", "initialisation": {"name": "gradient"}}
    with pytest.raises(PlacementError, match="of the kind 'embedding' cannot have; exclude it"):
        tailora.plan(model, recipe, "r=1", placement="role:embedding")


@pytest.mark.parametrize(
    ("slots", "sentence"),
    [
        ({"initialisation": {"name": "gradients"}}, "did you mean 'gradient'"),
        ({"initialisation": {"name": "gradient"}, "adapter": {"kind": "loha"}}, "which 'loha' lacks"),
        ({"initialisation": {"name": "gradient"}, "pilot": {"keep": True}}, "no effect where a pilot is kept"),
    ],
)
def test_recipes_that_cannot_start_so_are_refused(slots, sentence):
    with pytest.raises((UserError, UnknownNameError), match=sentence):
        load_recipe({"name": "mine", **uniform(), **slots})


def test_every_initialisation_is_described():
    for entry in INITIALISATIONS:
        assert entry.summary
        assert entry.citation or entry.name == "default"
        assert (entry.value.rows is None) == (not entry.value.needs)


@pytest.mark.parametrize(("config_of", "recipe"), [(review_config, "spectral-start"), (text_config, "gradient-start")])
def test_a_run_starts_from_its_calibration_gradient(tmp_path, config_of, recipe):
    """With a rate of almost nothing the saved A is the start; leading rows do not depend on the seed, others do."""
    still = {"learning_rate": 1e-12, "max_steps": 1, "save_steps": 1, "eval_steps": 1, "logging_steps": 1}
    held = []
    for seed in (0, 1):
        folder = execute(config_of(tmp_path, recipe=recipe, seed=seed, training=still))
        held.append(load_file(folder / "adapter" / "adapter_model.safetensors"))
        assert json.loads((folder / "timings.json").read_text())["start_s"] > 0
    plain = execute(config_of(tmp_path, recipe="lora", training=still))
    assert json.loads((plain / "timings.json").read_text())["start_s"] == 0
    alike = 0
    for name, a in held[0].items():
        if "lora_A" not in name:
            continue
        norms = a.square().sum(dim=1)
        settled = (norms - 1 / 3).abs() < 1e-5
        alike += int(settled.sum())
        basis = a[settled] * 3**0.5
        assert torch.allclose(basis @ basis.T, torch.eye(len(basis)), atol=1e-4)
        assert torch.allclose(a[settled], held[1][name][settled], atol=1e-6)
    assert alike >= sum("lora_A" in name for name in held[0]), "at least the leading row of most"


def test_the_laboratory_scores_starts_and_pays_for_them():
    names = ("gradient-start", "spectral", "spectral-start")
    record = solve(small(), Settings(contestants=names, budget="r=1", steps=4, rates=(1e-2,)))
    assert not record["left_out"]
    entries = record["contestants"]
    one_pass = 8 * 6 / (4 * 3 * 6)
    assert [entries[name]["extra_compute"] for name in names] == pytest.approx([one_pass] * 3)
    assert entries["spectral-start"]["ranks"] == entries["spectral"]["ranks"]
    assert entries["gradient-start"]["ranks"] == entries["lora"]["ranks"]
    # In four steps the start is nearly all there is.
    assert entries["gradient-start"]["loss"] < entries["lora"]["loss"]
    assert entries["spectral-start"]["loss"] < entries["spectral"]["loss"]
