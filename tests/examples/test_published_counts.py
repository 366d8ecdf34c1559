"""Published parameter counts, counted again by Tailora and by peft on models without weights."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import transformers as tf
from peft.tuners.lora import LoraLayer

import tailora
from places import REPOSITORY
from tailora.cli import main
from tailora.emit import emit

RECIPES = REPOSITORY / "examples" / "studies" / "recipes" / "placement"
ANCHOR = 9_175_040


@pytest.fixture(scope="module")
def dialogpt():
    """DialoGPT-medium's shape, which is GPT-2 medium's."""
    with torch.device("meta"):
        return tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=1024, n_layer=24, n_head=16))


def llama():
    """Llama-3.2-3B's shape."""
    config = tf.LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        return tf.LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def llama_targets():
    return tailora.find_targets(llama())


def trained(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("recipe", "modules", "published"),
    [
        ("all", ["c_attn", "c_proj", "c_fc"], 6_291_456),
        ("published-attention", ["c_attn", "c_proj"], 4_325_376),
        ("published-ffn", ["c_fc"], 1_966_080),
    ],
)
def test_the_published_placements_cost_what_was_published(dialogpt, recipe, modules, published):
    plan = tailora.plan(dialogpt, RECIPES / f"{recipe}.yaml", "r=16")
    assert plan.total_params == published
    # peft's own reading of the published list agrees.
    with torch.device("meta"):
        twin = tf.GPT2LMHeadModel(dialogpt.config)
        theirs = peft.LoraConfig(r=16, lora_alpha=32, target_modules=modules, fan_in_fan_out=True)
        assert trained(peft.get_peft_model(twin, theirs)) == published
        twin = tf.GPT2LMHeadModel(dialogpt.config)
        assert trained(peft.get_peft_model(twin, plan.lora_config())) == published
    adapted = {name for name, rank in plan.ranks.items() if rank}
    assert {name.rpartition(".")[2] for name in adapted} == set(modules)


def test_the_published_lists_are_confounded(dialogpt):
    attention = tailora.plan(dialogpt, RECIPES / "published-attention.yaml", "r=16")
    inside = sum(entry.cost for entry in attention.targets if entry.rank and entry.target.role == "ffn.down")
    assert inside == 1_966_080
    by_role = {name: tailora.plan(dialogpt, "lora", "r=16", name).total_params for name in ("attention", "ffn")}
    assert by_role == {"attention": 2_359_296, "ffn": 3_932_160}


def test_thirds_and_halves_share_the_layers_without_a_rest(dialogpt):
    targets = tailora.find_targets(dialogpt)
    for parts in (("lower-half", "upper-half"), ("lower-third", "middle-third", "upper-third")):
        plans = [tailora.plan(targets, RECIPES / f"{part}.yaml", "r=16") for part in parts]
        adapted = [{name for name, rank in plan.ranks.items() if rank} for plan in plans]
        assert len(set.union(*adapted)) == sum(map(len, adapted)) == len(plans[0].ranks)
        # Refitted to the whole budget, they all spend it: rank 16 everywhere is rank 32 or 48 on a part.
        assert {plan.total_params for plan in plans} == {6_291_456}


@pytest.mark.parametrize(
    ("recipe", "placement", "exact"),
    [
        ("lora", "query-value", True),  # the suite's own anchor
        ("upper-half", "query-value", True),  # rank 64 on half of the layers
        ("random-rank", "query-value", False),  # ranks of q and v differ in price, so up to one rank is left over
        ("lora", "all-linear", False),
        ("ffn-only", "all-linear", False),
    ],
)
def test_an_exported_plan_trains_in_peft_what_it_says(llama_targets, tmp_path, recipe, placement, exact):
    """What stands in adapter_config.json is what peft's method comparison would train."""
    plan = tailora.plan(llama_targets, recipe, "9175040", placement)
    assert (plan.total_params == ANCHOR) == exact
    assert ANCHOR - plan.total_params < 3072 + 8192
    (tmp_path / "adapter_config.json").write_text(emit(plan, "adapter-config", task_type="CAUSAL_LM"))
    # As the suite reads and wraps it.
    config = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert config.task_type == "CAUSAL_LM"
    assert config.base_model_name_or_path is None
    assert not config.inference_mode
    with torch.device("meta"):
        model = peft.get_peft_model(llama(), config)
    assert trained(model) == plan.total_params
    assert model.get_nb_trainable_parameters()[0] == plan.total_params
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    scales = {layer.scaling["default"] for layer in layers}
    assert scales == {2.0}


def test_the_command_exports_the_anchor(tmp_path, capsys):
    llama().config.save_pretrained(tmp_path / "model")
    command = ["plan", "--model", str(tmp_path / "model"), "--placement", "query-value", "--budget", "9175040"]
    try:
        main([*command, "--emit", "adapter-config", "--task-type", "CAUSAL_LM"])
    except SystemExit as end:
        assert not end.code
    written = json.loads(capsys.readouterr().out)
    assert written["peft_type"] == "LORA"
    assert written["r"] == 32
    assert written["lora_alpha"] == 64
    assert len(written["target_modules"]) == 2 * 28
