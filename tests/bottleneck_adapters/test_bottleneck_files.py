"""Saving, loading and training: the ways of peft and transformers, also in a fresh process."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers as tf
from bottleneck_cases import batch_of, logits, randomise, trainable, wrap
from peft import PeftModel
from safetensors.torch import load_file

import forked
import models
import tailora
from tailora.bottleneck import BottleneckConfig, BottleneckLayer, BottleneckModel, BottleneckType
from tailora.bottleneck.registration import register
from tailora.errors import TailoraError

READ = """
import sys, torch, transformers as tf
import tailora.bottleneck
from peft import PeftModel
kind, base, batch, out, *adapters = sys.argv[1:]
found = []
for adapter in adapters:
    model = PeftModel.from_pretrained(getattr(tf, kind).from_pretrained(base), adapter).eval()
    with torch.no_grad():
        found.append(model(**torch.load(batch)).logits)
torch.save(found, out)
"""


def in_a_fresh_process(tmp_path, kind, batch, *adapters):
    """Return the logits of the base in ``base`` with each adapter, read by peft after one import."""
    torch.save(batch, tmp_path / "batch.pt")
    files = [tmp_path / "base", tmp_path / "batch.pt", tmp_path / "out.pt", *adapters]
    assert forked.execute(READ, kind, *files) == 0
    return torch.load(tmp_path / "out.pt")


def test_it_is_public_and_imported_late():
    code = "import sys, tailora; assert not {'torch', 'tailora.bottleneck'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert tailora.BottleneckConfig is BottleneckConfig


def test_every_option_is_in_the_manual():
    manual = (Path(tailora.__file__).parents[2] / "docs" / "bottleneck.md").read_text(encoding="utf-8")
    inherited = {field.name for field in dataclasses.fields(peft.PeftConfig)}
    options = {field.name for field in dataclasses.fields(BottleneckConfig)} - inherited
    assert len(options) == 12
    assert not [name for name in options if f"`{name}" not in manual]


METHOD = (BottleneckType.BOTTLENECK, BottleneckConfig, BottleneckModel)


def test_registering_twice_changes_nothing_and_another_method_of_that_name_is_noticed(monkeypatch):
    tables = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    before = dict(tables)
    register(*METHOD)
    assert tables == before
    assert peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING["BOTTLENECK"] is BottleneckModel
    monkeypatch.setitem(tables, "BOTTLENECK", peft.LoraConfig)
    with pytest.raises(TailoraError, match="peft already has a method called 'BOTTLENECK'"):
        register(*METHOD)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_save_and_load_with_peft(tmp_path, name):
    options = {"placement": "houlsby", "layer_norm": True, "scaling": 0.7, "size_pattern": {r".*\.0\..*": 4}}
    model = randomise(wrap(models.build(name), task_type=models.TASK_TYPES[models.BUILDERS[name][1]], **options))
    wanted = logits(model, batch_of(name))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(t.numel() for t in saved.values()) == sum(p.numel() for p in trainable(model).values())
    assert not any("default" in key or "base_layer" in key for key in saved if "classifier" not in key)
    for loaded in (
        PeftModel.from_pretrained(models.build(name), tmp_path).eval(),
        PeftModel.from_pretrained(models.build(name), tmp_path, low_cpu_mem_usage=True).eval(),
    ):
        assert torch.equal(logits(loaded, batch_of(name)), wanted)
        assert not trainable(loaded)
    again = PeftModel.from_pretrained(models.build(name), tmp_path, adapter_name="other", is_trainable=True)
    assert set(trainable(again)) == {key.replace("default", "other") for key in trainable(model)}
    again.save_pretrained(tmp_path / "again")
    resaved = load_file(tmp_path / "again" / "other" / "adapter_model.safetensors")
    assert resaved.keys() == saved.keys()
    assert all(torch.equal(resaved[key], saved[key]) for key in saved)


def test_the_configuration_survives_the_file(tmp_path):
    config = BottleneckConfig(
        placement="pfeiffer",
        reduction_factor=4,
        size_pattern={"^bert.encoder.layer.0.output.dense": 7},
        activation="silu",
        exclude_modules=["b", "a"],
        init_weights="bert",
    )
    config.save_pretrained(tmp_path)
    text = json.loads((tmp_path / "adapter_config.json").read_text())
    assert text["peft_type"] == "BOTTLENECK"
    assert peft.PeftConfig.from_pretrained(tmp_path) == config
    assert BottleneckConfig.from_pretrained(tmp_path) == config


def test_a_head_and_layer_norms_train_beside_as_in_the_paper(tmp_path):
    """Houlsby et al. also train the block's layer norms."""
    base = models.build("bert")
    model = wrap(base, modules_to_save=["LayerNorm"], task_type="SEQ_CLS")
    names = set(trainable(model))
    norms = {name for name in names if "LayerNorm" in name}
    heads = {name for name in names if "classifier" in name}
    assert len(norms) == 2 * 5
    assert len(heads) == 2
    adapters = sum(p.numel() for name, p in trainable(model).items() if "bottleneck" in name)
    assert adapters == 4 * (2 * 16 * 3 + 3 + 16)
    wanted = logits(randomise(model), batch_of("bert"))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(models.build("bert"), tmp_path).eval()
    assert torch.equal(logits(loaded, batch_of("bert")), wanted)


def test_peft_counts_and_describes_it(capsys):
    model = wrap(models.build("llama"))
    model.print_trainable_parameters()
    assert f"trainable params: {4 * (2 * 16 * 3 + 3 + 16):,}" in capsys.readouterr().out
    status = model.get_model_status()
    assert status.peft_types == {"default": "BOTTLENECK"}
    assert status.adapter_model_type == "BottleneckModel"
    assert status.num_adapter_layers == 4
    assert status.enabled
    assert status.available_adapters == ["default"]


def test_transformers_own_adapter_methods(tmp_path):
    """A model's add_adapter, save_pretrained and load_adapter, without a PeftModel."""
    model, batch = models.build("bert"), batch_of("bert")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.add_adapter(BottleneckConfig(bottleneck=3, init_weights=False), "small")
    wanted = logits(model, batch)
    model.save_pretrained(tmp_path)
    loaded = models.build("bert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded.load_adapter(str(tmp_path), "small")
    assert torch.equal(logits(loaded, batch), wanted)
    loaded.disable_adapters()
    assert torch.equal(logits(loaded, batch), logits(models.build("bert"), batch))
    loaded.enable_adapters()
    loaded.delete_adapter("small")
    assert torch.equal(logits(loaded, batch), logits(models.build("bert"), batch))
    assert any(isinstance(module, BottleneckLayer) for module in loaded.modules())


@pytest.mark.parametrize(
    ("name", "kind", "task"),
    [("bert", "AutoModelForSequenceClassification", "SEQ_CLS"), ("llama", "AutoModelForCausalLM", "CAUSAL_LM")],
)
def test_twenty_steps_with_the_trainer_then_a_fresh_process(tmp_path, name, kind, task):
    base = models.build(name)
    base.save_pretrained(tmp_path / "base")
    before = {key: value.clone() for key, value in base.state_dict().items()}
    model = wrap(base, BottleneckConfig(bottleneck=4, task_type=task))
    batch = batch_of(name)
    rows = [{key: value[i] for key, value in batch.items()} for i in range(len(batch["labels"]))]
    arguments = tf.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=20,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=3e-2,
        save_steps=20,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        seed=0,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = tf.Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 20
    assert losses[-1] < 0.95 * losses[0]
    for key, value in model.base_model.model.state_dict().items():
        if "base_layer" in key:
            assert torch.equal(value, before[key.replace(".base_layer", "")])
    wanted = logits(model.eval(), batch)
    model.save_pretrained(tmp_path / "adapter")
    found = in_a_fresh_process(tmp_path, kind, batch, tmp_path / "adapter", tmp_path / "out" / "checkpoint-20")
    assert len(found) == 2
    assert all(torch.equal(one, wanted) for one in found)
