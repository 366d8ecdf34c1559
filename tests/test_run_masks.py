"""Runs with a mask: exactly the budget trains, the rest of the adapter stays, and a killed run ends the same."""

import json

import pytest
import torch
from safetensors.torch import load_file

import tailora
from tailora.errors import BudgetError, UserError
from tailora.masks import FisherMask
from tailora.plans import Plan
from tailora.recipes import recipe_names
from tailora.runs import evaluate_adapter, execute, load_base
from tailora.tasks import TASKS
from tiny_runs import review_config, text_config

FISH = [name for name in recipe_names() if name.startswith("fish-")]
# The controls differ in nothing but the selection, so one kind of adapter stands for all.  `fish-mask` has none: there
# the base weights themselves are chosen from.
TRAINED = [name for name in FISH if name.startswith("fish-lora") or not name.endswith(("-random", "-reverse"))]


def config_of(tmp_path, recipe, **changes):
    # IA3 has 224 parameters here; every other kind can be had at rank 2.
    budget = "100" if "ia3" in recipe else "r=2"
    return review_config(tmp_path, recipe=recipe, **{"budget": budget, **changes})


def fresh_adapter(config):
    """Return the adapter that the run started from, by the names of its saved file."""
    from peft import get_peft_model_state_dict

    base = load_base(config).fresh(config.seed)
    plan = Plan.load(tailora.runs.run_folder(config) / "plan.json")
    task = TASKS[config.task.kind]
    saved = list(base.new_modules) or None
    return get_peft_model_state_dict(
        plan.apply(base.model, task_type=task.task_type, modules_to_save=saved, seed=config.seed)
    )


def moved_entries(config, folder):
    """Count the adapter's entries that training changed, and those that the mask lets train."""
    mask, start = FisherMask.load(folder / "mask"), fresh_adapter(config)
    end = load_file(folder / "adapter" / "adapter_model.safetensors")
    moved = 0
    for name, kept in mask.tensors.items():
        saved = (
            name.replace(".modules_to_save", "")
            .replace(".default", "")
            .replace("magnitude_vector.weight", "magnitude_vector")
        )
        changed = start[saved] != end[saved]
        assert not bool((changed & ~kept.reshape(changed.shape)).any()), name
        moved += int(changed.sum())
    return moved, mask


@pytest.mark.parametrize("recipe", TRAINED)
def test_exactly_the_budget_trains(tmp_path, recipe):
    config = config_of(tmp_path, recipe, training={"max_steps": 4, "weight_decay": 0.1})
    folder = execute(config)
    plan, counts = Plan.load(folder / "plan.json"), json.loads((folder / "counts.json").read_text())
    moved, mask = moved_entries(config, folder)
    assert plan.total_params == plan.kept_params == mask.kept == counts["adapter_params"] <= plan.budget_params
    assert mask.total == plan.adapter_params == counts["stored_adapter_params"]
    assert moved > 0.5 * mask.kept or "reverse" in recipe
    assert evaluate_adapter(folder) == json.loads((folder / "scores.json").read_text())


@pytest.mark.parametrize("recipe", ["loha", "houlsby", "pfeiffer"])
def test_plain_adapters_of_other_kinds_spend_the_same_budget(tmp_path, recipe):
    folder = execute(config_of(tmp_path, recipe, training={"max_steps": 4}))
    plan, counts = Plan.load(folder / "plan.json"), json.loads((folder / "counts.json").read_text())
    assert 0.9 * plan.budget_params < plan.total_params == counts["adapter_params"] <= plan.budget_params
    assert evaluate_adapter(folder) == json.loads((folder / "scores.json").read_text())


def test_ia3_costs_what_it_costs(tmp_path):
    plan = Plan.load(execute(config_of(tmp_path, "ia3", budget="r=2", training={"max_steps": 2})) / "plan.json")
    assert plan.total_params == plan.budget_params < plan.provenance["asked_params"]


def test_a_language_model_trains_under_a_mask(tmp_path):
    config = text_config(tmp_path, recipe="fish-lora")
    moved, mask = moved_entries(config, execute(config))
    assert moved == mask.kept


def test_masks_differ_between_controls_and_agree_between_repetitions(tmp_path):
    kept = {}
    for number, recipe in enumerate(["fish-lora", "fish-lora", "fish-lora-random", "fish-lora-reverse"]):
        folder = execute(config_of(tmp_path / str(number), recipe, training={"max_steps": 1}))
        kept[number] = FisherMask.load(folder / "mask").hash
    assert kept[0] == kept[1]
    assert len(set(kept.values())) == 3


@pytest.mark.parametrize("rewind", [True, False])
def test_a_killed_run_ends_the_same(tmp_path, monkeypatch, rewind):
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        f"allocation: {{name: uniform}}\nmask: {{grow: 3, warmup_steps: 2, rewind: {str(rewind).lower()}}}\n"
    )
    whole = execute(config_of(tmp_path / "whole", str(recipe)))
    config = config_of(tmp_path / "cut", str(recipe))
    import tailora.training as training

    steps = training.evaluation_row
    monkeypatch.setattr(training, "evaluation_row", lambda step, scored: 1 / 0 if step == 6 else steps(step, scored))
    with pytest.raises(ZeroDivisionError):
        execute(config)
    monkeypatch.setattr(training, "evaluation_row", steps)
    before = {path.name: path.stat().st_mtime_ns for path in (tailora.runs.run_folder(config) / "mask").iterdir()}
    again = execute(config)
    after = {path.name: path.stat().st_mtime_ns for path in (again / "mask").iterdir()}
    assert (after == before) == rewind, "a mask is read again unless the warm-up left its mark on the model"
    one, two = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, again))
    assert json.loads((again / "timings.json").read_text())["resumed_from_step"] == 4
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-7)


def test_what_cannot_be_masked_is_refused(tmp_path):
    targets = tailora.find_targets(load_base(review_config(tmp_path)).model)
    with pytest.raises(BudgetError, match=r"the budget of 500 parameters is more than the largest adapter .*fish-ia3"):
        tailora.plan(targets, "fish-ia3", 500)
    with pytest.raises(UserError, match=r"mask\.grow|grow 0\.5"):
        tailora.plan(targets, {"name": "x", "allocation": {"name": "uniform"}, "mask": {"grow": 0.5}}, "r=2")
    adapter = {"kind": "loha", "dora": True}
    with pytest.raises(UserError, match=r"dora: true needs kind: lora"):
        tailora.plan(targets, {"name": "x", "allocation": {"name": "uniform"}, "adapter": adapter}, "r=2")
    with pytest.raises(UserError, match=r"training\.optim='adafactor' cannot be masked"):
        execute(config_of(tmp_path, "fish-lora", training={"optim": "adafactor"}))
    plan = tailora.plan(targets, "fish-loha", "r=2")
    with pytest.raises(UserError, match=r"call plan.peft_config\(\)"):
        plan.lora_config()
