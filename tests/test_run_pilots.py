"""Runs with a pilot: one schedule, one data order, a plan within the budget, and nothing lost when killed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import tailora
from tailora import training
from tailora.adapter_folders import evaluate_adapter
from tailora.cli import main
from tailora.errors import PlacementError, UserError
from tailora.plans import Plan
from tailora.profiles import Profile
from tailora.recipes import load_recipe
from tailora.runs import execute, run_folder
from tiny_runs import review_config

STEPS = {"max_steps": 10, "save_steps": 3, "logging_steps": 1, "eval_steps": 6}


def written(folder, name):
    return json.loads((folder / name).read_text())


def rows(folder, split="train"):
    found = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in found if row["split"] == split}


def recipe_file(folder, **slots):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mine.yaml"
    values = {"citation": "none", "allocation": {"name": "pilot"}, "pilot": {"rank": "4x", "share": 0.4}} | slots
    path.write_text(json.dumps(values))
    return str(path)


def test_a_kept_pilot_goes_on_where_it_stopped(tmp_path):
    """With the pilot's own ranks nothing is cut off: the next step's loss is plain LoRA's, on the same batch."""
    plain = execute(review_config(tmp_path / "a", recipe="lora", training=STEPS))
    same = recipe_file(tmp_path, allocation={"name": "uniform"}, pilot={"rank": "1x", "share": 0.4})
    kept = execute(review_config(tmp_path / "b", recipe=same, training=STEPS))
    mine, theirs = rows(kept), rows(plain)
    pilot = rows(kept / "pilot")
    assert sorted(pilot) == [1, 2, 3, 4]
    assert sorted(mine) == list(range(1, 11)), "one curve"
    for step, row in pilot.items():
        assert row == mine[step]
        assert row["loss"] == pytest.approx(theirs[step]["loss"], rel=1e-6)
    assert mine[5]["loss"] == pytest.approx(theirs[5]["loss"], rel=1e-5), "same function, same batch"
    assert mine[10]["loss"] != pytest.approx(theirs[10]["loss"], rel=1e-6), "the optimizer started anew"
    for step, row in mine.items():
        assert row["learning_rate"] == pytest.approx(theirs[step]["learning_rate"], rel=1e-9)


@pytest.mark.parametrize("recipe", ["pilot", "pilot-dropped", "pilot-uniform"])
def test_a_run_with_a_pilot_is_a_run(recipe, tmp_path):
    config = review_config(tmp_path, recipe=recipe, training=STEPS)
    folder = execute(config)
    plan = Plan.load(folder / "plan.json")
    assert written(folder, "counts.json")["adapter_params"] == plan.total_params <= plan.budget_params
    facts = written(folder / "pilot", "pilot.json")
    assert facts["steps"] == 4
    assert facts["kept"] == (recipe != "pilot-dropped")
    assert facts["adapter_params"] > plan.total_params
    assert facts["scale"] == pytest.approx(2.0 / 8)
    assert sorted(rows(folder)) == list(range(1, 11))
    assert not (folder / "checkpoints").exists()
    assert not (folder / "pilot" / "checkpoints").exists()
    held = Profile.load(folder / "pilot")
    assert {"pilot_spectrum", "pilot_worth"} <= set(held.signals)
    again = tailora.plan(held, recipe if recipe != "pilot-uniform" else "pilot", config.budget, config.placement)
    if recipe != "pilot-uniform":
        assert dict(again.ranks) == dict(plan.ranks)
    else:
        assert len({entry.rank for entry in plan.targets}) == 1
    scores = written(folder, "scores.json")
    assert evaluate_adapter(folder / "adapter", config)["loss"] == pytest.approx(scores["loss"], rel=1e-5)
    stock = PeftModel.from_pretrained(classifier(config.model), folder / "adapter")
    assert sum(p.numel() for n, p in stock.named_parameters() if ".lora_" in n) == plan.total_params


def classifier(folder):
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


class Killed(BaseException):
    """What a test raises in place of SIGKILL."""


@pytest.mark.parametrize("when", ["pilot", "measured", "training"])
def test_a_killed_run_ends_as_an_undisturbed_one(when, tmp_path, monkeypatch):
    whole = execute(review_config(tmp_path / "a", recipe="pilot", training=STEPS))
    config = review_config(tmp_path / "b", recipe="pilot", training=STEPS)
    seen = []

    def progress(stage, done, total):
        seen.append((stage, done))
        taken = [number for name, number in seen if name == "train"]
        if stage == "train" and ((when == "pilot" and done == 4) or (when == "training" and taken.count(8) == 1)):
            raise Killed

    with monkeypatch.context() as patch:
        if when == "measured":
            patch.setattr("tailora.runs._plan", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            execute(config, progress=progress)
    folder = run_folder(config)
    assert (folder / "pilot" / "pilot.json").exists() == (when != "pilot")
    execute(config)
    mine, theirs = (load_file(place / "adapter" / "adapter_model.safetensors") for place in (folder, whole))
    assert set(mine) == set(theirs)
    for name, tensor in mine.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-6), name
    assert rows(folder) == rows(whole)
    assert written(folder, "scores.json") == pytest.approx(written(whole, "scores.json"))


def test_every_pilot_gets_the_runs_own_steps(tmp_path):
    """An epoch's worth of steps is known to the trainer alone; the pilot takes its share of those."""
    config = review_config(
        tmp_path, recipe="pilot", training={"num_train_epochs": 1.0, "max_steps": None, "logging_steps": 1}
    )
    folder = execute(config)
    steps = max(rows(folder))
    assert written(folder / "pilot", "pilot.json")["steps"] == round(0.4 * steps)
    assert max(rows(folder / "pilot")) == round(0.4 * steps)


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ({"pilot": None}, "reads a pilot's update; add the slot 'pilot'"),
        ({"adapter": {"dora": True}}, "trains plain LoRA, not 'dora'"),
        ({"adapter": {"scaling": {"kind": "rslora"}}}, "scaling.kind must be constant"),
        ({"mask": {"grow": 2.0}}, "cannot be combined with a mask"),
        ({"training": {"method": "lora-plus"}}, "cannot be combined with the training method 'lora-plus'"),
        ({"allocation": {"name": "uniform"}, "pilot": {"keep": False}}, "nothing reads the pilot"),
        ({"pilot": {"share": 1.0}}, "pilot.share"),
        ({"pilot": {"rank": "much"}}, "must be a whole number or a factor"),
    ],
)
def test_slots_that_do_not_fit_are_refused(slots, words, tmp_path):
    with pytest.raises(UserError, match=words):
        load_recipe(recipe_file(tmp_path, **slots))


def test_what_cannot_be_piloted_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"needs training.max_steps of at least 2, not 1"):
        execute(review_config(tmp_path / "a", recipe="pilot", training={"max_steps": 1}))
    with monkeypatch.context() as patch:
        patch.setattr("tailora.run_pilots.world_size", lambda: 2)
        with pytest.raises(UserError, match="takes one process and found 2"):
            execute(review_config(tmp_path / "b", recipe="pilot", training=STEPS))
    with pytest.raises(PlacementError, match="'bert.embeddings.word_embeddings' .* is of the kind 'embedding'"):
        execute(
            review_config(
                tmp_path / "c",
                recipe=recipe_file(tmp_path, placement="role:embedding+attention.query"),
                placement="role:embedding+attention.query",
                training=STEPS,
            )
        )


def test_planning_without_a_pilot_says_what_to_do(tmp_path, capsys):
    folder = execute(review_config(tmp_path, recipe="lora", training=STEPS | {"max_steps": 2}))
    plan = Plan.load(folder / "plan.json")
    with pytest.raises(UserError, match="a run's own pilot measures; train with the recipe"):
        tailora.plan([entry.target for entry in plan.targets], "pilot", "r=1")
    shutil.rmtree(folder)
    with pytest.raises(SystemExit):
        main(["recipes", "--json"])
    shown = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"pilot", "pilot-dropped", "pilot-uniform"} <= set(shown)


def test_a_checkpoint_knows_its_schedule(tmp_path):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "max_steps": 8}))
    assert training.steps_of(folder) == 8
