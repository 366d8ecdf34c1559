"""Saving, loading and training: the ways of peft and transformers, also in a fresh process."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers as tf
from peft import PeftModel
from safetensors.torch import load_file
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from unipelt_cases import SMALL, batch_of, build, layers_of, logits, trainable, wrap

import forked
import models
import tailora
from tailora.bottleneck.registration import register
from tailora.errors import TailoraError
from tailora.unipelt import UniPELTConfig, UniPELTModel, UniPELTType, attention

KINDS = {"bert": "AutoModelForSequenceClassification", "llama": "AutoModelForCausalLM"}
READ = """
import sys, torch, transformers as tf
import tailora.unipelt
from peft import PeftModel
kind, base, batch, out, adapter = sys.argv[1:]
model = PeftModel.from_pretrained(getattr(tf, kind).from_pretrained(base), adapter).eval()
with torch.no_grad():
    torch.save(model(**torch.load(batch)).logits, out)
"""


def test_it_is_public_and_imported_late():
    code = "import sys, tailora; assert not {'torch', 'tailora.unipelt'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert tailora.UniPELTConfig is UniPELTConfig


def test_every_option_is_in_the_manual():
    manual = (Path(tailora.__file__).parents[2] / "docs" / "bottleneck.md").read_text(encoding="utf-8")
    manual = manual[manual.index("## UniPELT") :]
    inherited = {field.name for field in dataclasses.fields(peft.PeftConfig)}
    options = {field.name for field in dataclasses.fields(UniPELTConfig)} - inherited
    assert len(options) == 11
    assert not [name for name in options if f"`{name}" not in manual]


METHOD = (UniPELTType.UNIPELT, UniPELTConfig, UniPELTModel)


def test_registering_twice_changes_nothing_and_others_of_that_name_are_noticed(monkeypatch):
    tables = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    before = dict(tables)
    register(*METHOD)
    assert tables == before
    assert peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING["UNIPELT"] is UniPELTModel
    monkeypatch.setitem(tables, "UNIPELT", peft.LoraConfig)
    with pytest.raises(TailoraError, match="peft already has a method called 'UNIPELT'"):
        register(*METHOD)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, attention.NAME, print)
    with pytest.raises(TailoraError, match="transformers already has an attention function called 'tailora_unipelt'"):
        attention.register_attention()


def test_the_configuration_survives_the_file(tmp_path):
    config = UniPELTConfig(lora_rank=3, prefix_projection=7, bottleneck=0, gate="token", exclude_modules=["b", "a"])
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "UNIPELT"
    assert peft.PeftConfig.from_pretrained(tmp_path) == config
    assert UniPELTConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("options", [{}, {"prefix_projection": 5}])
def test_save_and_load_with_peft(tmp_path, name, options):
    task = models.TASK_TYPES[models.BUILDERS[name][1]]
    model = wrap(build(name, dtype=torch.float32), task_type=task, **options)
    wanted = logits(model, batch_of(name))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(t.numel() for t in saved.values()) == sum(p.numel() for p in trainable(model).values())
    assert not any("default" in key or "base_layer" in key for key in saved if "classifier" not in key)
    for low in (False, True):
        loaded = PeftModel.from_pretrained(build(name, dtype=torch.float32), tmp_path, low_cpu_mem_usage=low).eval()
        assert torch.equal(logits(loaded, batch_of(name)), wanted)
        assert not trainable(loaded)
    again = PeftModel.from_pretrained(build(name), tmp_path, adapter_name="other", is_trainable=True)
    assert set(trainable(again)) == {key.replace("default", "other") for key in trainable(model)}


def test_layer_norms_train_beside(tmp_path):
    model = wrap(build("bert", dtype=torch.float32), modules_to_save=["LayerNorm"], task_type="SEQ_CLS")
    assert len([key for key in trainable(model) if "LayerNorm" in key]) == 2 * 5
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.1)
    wanted = logits(model, batch_of("bert"))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("bert", dtype=torch.float32), tmp_path).eval()
    assert torch.equal(logits(loaded, batch_of("bert")), wanted)


def test_transformers_own_adapter_methods(tmp_path):
    """A model's add_adapter, save_pretrained and load_adapter, without a PeftModel."""
    model, batch = build("bert", dtype=torch.float32), batch_of("bert")
    plain = logits(model, batch)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.add_adapter(UniPELTConfig(**SMALL, init_weights=False), "small")
    wanted = logits(model, batch)
    assert not torch.allclose(wanted, plain, atol=1e-4)
    model.save_pretrained(tmp_path)
    loaded = build("bert", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded.load_adapter(str(tmp_path), "small")
    assert torch.equal(logits(loaded, batch), wanted)
    loaded.disable_adapters()
    assert torch.equal(logits(loaded, batch), plain)
    loaded.enable_adapters()
    loaded.delete_adapter("small")
    assert torch.equal(logits(loaded, batch), plain)


def test_a_whole_model_can_be_pickled():
    model, batch = wrap(build("bert", dtype=torch.float32)), batch_of("bert")
    wanted = logits(model, batch)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(again, batch), wanted)
    again.unload()
    assert torch.equal(logits(model, batch), wanted)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_five_steps_with_the_trainer_then_a_fresh_process(tmp_path, name):
    base = build(name, dtype=torch.float32)
    base.save_pretrained(tmp_path / "base")
    before = {key: value.clone() for key, value in base.state_dict().items()}
    task = models.TASK_TYPES[models.BUILDERS[name][1]]
    model, batch = wrap(base, UniPELTConfig(**SMALL, task_type=task)), batch_of(name)
    start = {key: p.detach().clone() for key, p in trainable(model).items()}
    rows = [{key: value[i] for key, value in batch.items()} for i in range(len(batch["labels"]))]
    arguments = tf.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=5,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        seed=0,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf.Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert all(not torch.equal(p, start[key]) for key, p in trainable(model).items())
    for layer in layers_of(model):
        weight = layer.base_layer.weight
        assert any(torch.equal(weight, held) for held in before.values() if held.shape == weight.shape)
    wanted = logits(model.eval(), batch)
    model.save_pretrained(tmp_path / "adapter")
    torch.save(batch, tmp_path / "batch.pt")
    files = [tmp_path / "base", tmp_path / "batch.pt", tmp_path / "out.pt", tmp_path / "adapter"]
    assert forked.execute(READ, KINDS[name], *files) == 0
    assert torch.equal(torch.load(tmp_path / "out.pt"), wanted)
