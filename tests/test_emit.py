"""What is printed for other trainers: complete, anchored, and equal to the plan's own configuration."""

from __future__ import annotations

import ast
import json
import re

import peft
import pytest
import yaml

import models
import tailora
from tailora.cli import main
from tailora.emit import EMITTERS, emit
from tailora.errors import UserError
from tailora.plans import plan as make_plan

RECIPES = ("lora", "dora", "rslora", "attention-only", "random-rank", "lora-plus")


@pytest.fixture(scope="module")
def networks():
    return {name: models.build(name) for name in models.FIVE}


def keywords(text, call):
    """Return the arguments of a call in Python source, without running it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == call:
            return {item.arg: ast.literal_eval(item.value) for item in node.keywords}, node.args
    raise AssertionError(f"no {call} in {text}")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", models.FIVE)
def test_the_python_code_gives_an_equal_config(networks, name, recipe):
    plan = make_plan(networks[name], recipe, "r=2")
    space = {}
    exec(emit(plan, "peft", task_type=models.TASK_TYPES[models.BUILDERS[name][1]]), space)
    assert space["lora_config"] == plan.lora_config(task_type=models.TASK_TYPES[models.BUILDERS[name][1]])
    space = {}
    exec(emit(plan, "peft"), space)
    assert space["lora_config"] == plan.lora_config()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", models.FIVE)
def test_axolotl_yaml_is_complete_and_anchored(networks, name, recipe):
    plan = make_plan(networks[name], recipe, "r=2")
    content = yaml.safe_load(emit(plan, "axolotl", model="some/model"))
    adapted = {target: rank for target, rank in plan.ranks.items() if rank}
    assert content["adapter"] == "lora"
    assert content["base_model"] == "some/model"
    for key, expected in (("lora_rank_pattern", adapted), ("lora_alpha_pattern", plan.alphas)):
        found = content[key]
        assert len(found) == len(expected)
        assert all(pattern.startswith("^") for pattern in found)
        for target, value in expected.items():
            hits = [number for pattern, number in found.items() if re.match(rf"(.*\.)?({pattern})$", target)]
            assert hits == [value]
            assert type(hits[0]) is int
    named = [*content.get("lora_target_modules", []), *content.get("lora_target_parameters", [])]
    assert sorted(named) == sorted(adapted)
    assert content.get("peft_use_dora", False) == (recipe == "dora")
    assert content.get("peft_use_rslora", False) == (recipe == "rslora")
    assert content.get("loraplus_lr_ratio") == (16.0 if recipe == "lora-plus" else None)
    assert content.get("lora_fan_in_fan_out", False) == (name == "gpt2")


@pytest.mark.parametrize(("to", "call"), [("trl", "LoraConfig"), ("unsloth", "FastLanguageModel.get_peft_model")])
def test_scripts_hold_the_same_ranks(networks, to, call):
    plan = make_plan(networks["llama"], "random-rank", "r=2", seed=3)
    text = emit(plan, to, model="some/model")
    given, first = keywords(text, call)
    config = plan.lora_config()
    assert given["rank_pattern"] == config.rank_pattern
    assert given["alpha_pattern"] == config.alpha_pattern
    assert set(given["target_modules"]) == set(config.target_modules)
    if to == "trl":
        assert given["task_type"] == "CAUSAL_LM"
        assert "model='some/model'" in text
    else:
        # unsloth finds the task type out by itself and refuses a second one.
        assert "task_type" not in given
        assert [node.id for node in first] == ["model"]


def test_what_a_configuration_cannot_hold_is_said(networks):
    plan = make_plan(networks["llama"], "lora-plus", "r=2")
    assert "training method 'lora-plus' (ratio 16" in emit(plan, "peft")
    assert "set it up yourself" not in emit(plan, "axolotl")
    assert "set it up yourself" not in emit(make_plan(networks["llama"], "lora", "r=2"), "peft")


@pytest.mark.parametrize("recipe", ["lora", "dora", "rslora", "random-rank"])
@pytest.mark.parametrize("name", models.FIVE)
def test_the_json_file_is_read_back_as_the_plans_own_config(networks, tmp_path, name, recipe):
    plan = make_plan(networks[name], recipe, "r=2")
    task_type = models.TASK_TYPES[models.BUILDERS[name][1]]
    (tmp_path / "adapter_config.json").write_text(emit(plan, "adapter-config", task_type=task_type, model="some/model"))
    read = peft.LoraConfig.from_pretrained(str(tmp_path))
    assert read.base_model_name_or_path == "some/model"
    read.base_model_name_or_path = None
    expected = plan.lora_config(task_type=task_type).to_dict()
    # JSON has no sets: peft takes a list of names for one.
    assert {k: v for k, v in read.to_dict().items() if k != "target_modules"} == {
        k: v for k, v in expected.items() if k != "target_modules"
    }
    names = (read.target_modules, expected["target_modules"])
    assert names[0] == names[1] or {*names[0]} == {*names[1]}
    with pytest.raises(UserError, match="trains by the method 'lora-plus', which adapter_config.json cannot say"):
        emit(make_plan(networks[name], "lora-plus", "r=2"), "adapter-config")


def test_a_start_that_the_json_file_cannot_say_is_refused(networks):
    with pytest.raises(UserError, match="initialisation 'gradient', which adapter_config.json cannot say"):
        emit(make_plan(networks["llama"], "gradient-start", "r=2"), "adapter-config")


def test_names_that_would_break_out_of_the_source_do_not(tmp_path):
    evil = 'block."""; import os\nos.abort() #\\'
    target = tailora.Target(name=evil, role="other", depth=0, shape=(4, 4))
    plan = make_plan([target], {"name": "x\nimport os", "allocation": {"name": "uniform"}}, "r=1")
    space = {}
    exec(emit(plan, "peft"), space)
    assert space["lora_config"] == plan.lora_config()
    assert yaml.safe_load(emit(plan, "axolotl"))["lora_target_modules"] == [evil]
    assert keywords(emit(plan, "trl", model='a"\n'), "LoraConfig")[0]["r"] == 1


def test_axolotl_takes_no_fractional_alpha(networks):
    recipe = {"name": "odd", "allocation": {"name": "uniform"}, "adapter": {"scaling": {"scale": 1.5}}}
    with pytest.raises(UserError, match=r"alpha 4\.5.*whole alphas only"):
        emit(make_plan(networks["llama"], recipe, "r=3"), "axolotl")
    assert "4.5" in emit(make_plan(networks["llama"], recipe, "r=3"), "peft")


def test_unsloth_is_warned_of_embeddings(networks):
    recipe = {"name": "all", "placement": "regex:.*", "allocation": {"name": "uniform"}}
    text = emit(make_plan(networks["llama"], recipe, "r=2", placement="regex:.*"), "unsloth")
    assert "trains" in text
    assert "in full instead of by LoRA" in text


@pytest.fixture(scope="module")
def folder(tmp_path_factory, networks):
    place = tmp_path_factory.mktemp("emit")
    networks["llama"].config.save_pretrained(place / "model")
    make_plan(networks["llama"], "lora", "r=2").save(place / "plan.json")
    return place


def test_the_command_prints_nothing_but_the_configuration(folder, capsys):
    space = {}
    main_quietly("plan", "--model", folder / "model", "-b", "r=2", "--emit", "peft", "--task-type", "CAUSAL_LM")
    exec(capsys.readouterr().out, space)
    assert space["lora_config"].task_type == "CAUSAL_LM"
    main_quietly("plan", "--from", folder / "plan.json", "--emit", "axolotl", "--model", "some/model")
    content = yaml.safe_load(capsys.readouterr().out)
    assert content["lora_r"] == 2
    assert content["base_model"] == "some/model"
    main_quietly("plan", "--from", folder / "plan.json", "--json")
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "plan.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--emit", "axolot"], "unknown trainer 'axolot'; did you mean 'axolotl'"),
        (["--emit", "peft", "--task-type", "CLS"], "task type 'CLS' is none of peft's"),
        (["--emit", "peft", "--json"], "both decide what is printed"),
        (["--task-type", "SEQ_CLS"], "is for --emit"),
        (["--budget", "r=4"], "which --budget would change"),
        (["--r-max", "4"], "which --r-max would change"),
        (["--recipe", "dora"], "which --recipe would change"),
    ],
)
def test_wrong_words_get_one_sentence(folder, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as end:
        main(["plan", "--from", str(folder / "plan.json"), *arguments])
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err


def main_quietly(*arguments):
    """Run a command; it returns or exits with 0."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        assert not end.code


def test_every_trainer_has_a_summary():
    assert EMITTERS.names() == ["peft", "trl", "adapter-config", "axolotl", "unsloth"]
    assert all(entry.summary for entry in EMITTERS)
