"""Quantised bases: targets, signals, plans, training and reload are those of the weights they stand for."""

from __future__ import annotations

import copy
import importlib.util
import json

import numpy as np
import pytest
import torch
import transformers as tf
from peft import PeftModel

import tailora.requirements
from tailora.adapters import count_parameters
from tailora.config import make_config
from tailora.errors import ConfigError
from tailora.fingerprints import model_fingerprint
from tailora.packed import count_weights, is_packed
from tailora.plans import plan
from tailora.profiles import profile
from tailora.runs import execute
from tailora.targets import find_targets
from tailora.tasks.calibration import measure_profile, prepare
from tiny_runs import read_rows, review_config, save_bert, text_config

NF4 = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}
WAYS = {
    "nf4": {"load_in_4bit": True},
    "nf4-double": NF4,
    "bf16": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"},
    "int8": {"load_in_8bit": True},
    "torchao": {"torchao": "int8_weight_only"},
}


def needs(quantization):
    package = "torchao" if "torchao" in quantization else "bitsandbytes"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"package {package} is not installed")


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def way(request):
    needs(request.param)
    return request.param


def dequantized(model):
    """A float32 copy that holds exactly the weights that the packed layers stand for."""
    result = copy.deepcopy(model)
    for name, module in list(result.named_modules()):
        if not is_packed(module):
            continue
        if type(module).__name__ == "Linear4bit":
            from bitsandbytes.functional import dequantize_4bit

            weight = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        elif type(module).__name__ == "Linear8bitLt":
            scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
            weight = module.weight.data.float() * scales[:, None] / 127
        else:
            weight = module.weight.dequantize()
        plain = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        plain.weight.data = weight.reshape(module.out_features, module.in_features).clone()
        if module.bias is not None:
            plain.bias.data = module.bias.data.float()
        parent, _, last = name.rpartition(".")
        setattr(result.get_submodule(parent), last, plain)
    return result


@pytest.mark.parametrize("make", [review_config, text_config])
def test_targets_and_signals_are_those_of_the_weights_it_stands_for(tmp_path, make, way):
    prepared = prepare(make(tmp_path, quantization=way))
    plain = prepare(make(tmp_path)).base.model
    model = prepared.base.fresh(0).model
    assert sum(is_packed(module) for module in model.modules()) >= 12
    assert find_targets(model) == find_targets(plain)
    assert count_weights(model) == count_weights(plain) == sum(p.numel() for p in plain.parameters())
    batches = list(prepared.task.batches(prepared.base.tokenizer, prepared.training[:12], 4))
    names = ("fisher", "gradient_spectrum")
    found = profile(model, batches, names)
    expected = profile(dequantized(model), batches, names)
    # Eight bits and bfloat16 round the inputs as well, which a copy with plain products does not.
    tolerance = 0.15 if way.get("load_in_8bit") or "bnb_4bit_compute_dtype" in way else 2e-4
    for name in names:
        mine, theirs = (np.asarray(list(one.scalar(name).values())) for one in (found, expected))
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance * theirs.max() * 0.1)
    # The quantised model is another one, and the profile would know.
    assert found.meta["model"] != model_fingerprint(plain)
    found.check(model)


@pytest.mark.parametrize("make", [review_config, text_config])
def test_copies_are_equal_and_independent(tmp_path, make, way):
    prepared = prepare(make(tmp_path, quantization=way))
    base = prepared.base
    before = model_fingerprint(base.model)
    batch = next(prepared.task.batches(base.tokenizer, prepared.training[:4], 4))
    one, two = base.fresh(3).model, base.fresh(3).model
    assert model_fingerprint(one) == model_fingerprint(two)
    with torch.no_grad():
        logits = one.eval()(**batch).logits
        assert torch.equal(logits, two.eval()(**batch).logits)
        # Neither a forward pass nor another copy changes what the fingerprint sees.
        assert model_fingerprint(one) == model_fingerprint(two)
        for module in one.modules():
            if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
                module.weight.data.zero_()
            elif is_packed(module):
                module.weight.qdata.zero_()
        assert torch.equal(logits, two(**batch).logits)
    assert model_fingerprint(one) != model_fingerprint(two)
    assert model_fingerprint(base.model) == before


def test_the_fingerprint_sees_the_scales(tmp_path, way):
    """Twice the weights have the same codes: only their scales differ."""
    prints = []
    for factor in (1.0, 2.0):
        folder = tmp_path / str(factor)
        config = text_config(folder)
        model = tf.AutoModelForCausalLM.from_pretrained(config.model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "proj" in name:
                    parameter.mul_(factor)
        model.save_pretrained(config.model)
        prints.append(model_fingerprint(prepare(text_config(folder, quantization=way)).base.model))
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    ("make", "name", "recipe"),
    [
        *((text_config, name, "spectral") for name in WAYS),
        *((review_config, name, "spectral") for name in ("nf4-double", "int8", "torchao")),
        (text_config, "nf4-double", "dora"),
        (review_config, "torchao", "dora"),
        (review_config, "nf4", "lora-plus"),
        (text_config, "nf4-double", "pilot"),
        (review_config, "int8", "pilot"),
        (text_config, "torchao", "pilot-uniform"),
    ],
)
def test_a_run_trains_what_was_planned_and_stock_peft_reloads_it(tmp_path, make, name, recipe):
    needs(way := WAYS[name])
    config = make(tmp_path, quantization=way, recipe=recipe, training={"max_steps": 20})
    folder = execute(config)
    counts = json.loads((folder / "counts.json").read_text())
    planned = json.loads((folder / "plan.json").read_text())
    assert counts["adapter_params"] == planned["total_params"] <= planned["budget_params"]
    assert (counts["head_params"] > 0) == (make is review_config)
    losses = [row["loss"] for row in read_rows(folder / "history.jsonl") if row["split"] == "train"]
    assert losses[-1] < losses[0]
    # The base as anybody would load it, through a fresh loading of ours and the stock peft class.
    prepared = prepare(config)
    again = PeftModel.from_pretrained(prepared.base.model, str(folder / "adapter")).eval()
    assert all(p.dtype == torch.float32 for n, p in again.named_parameters() if "lora_" in n)
    scored = prepared.task.evaluate(
        again, prepared.base.tokenizer, prepared.evaluation, batch_size=32, labels=prepared.splits.labels
    )
    stored = json.loads((folder / "scores.json").read_text())
    assert scored.loss == pytest.approx(stored["loss"], rel=1e-5)
    assert counts["base_params"] + counts["head_params"] == count_weights(prepare(make(tmp_path)).base.model)


def test_percent_budgets_count_weights_and_not_bytes(tmp_path, way):
    packed = measure_profile(text_config(tmp_path, quantization=way))
    plain = measure_profile(text_config(tmp_path))
    budgets = [plan(one, "lora", "5%").budget_params for one in (packed, plain)]
    assert budgets[0] == budgets[1]


@pytest.mark.parametrize("name", ["nf4-double", "int8", "torchao"])
def test_resuming_repeats_the_undisturbed_training(tmp_path, name):
    needs(way := WAYS[name])
    config = text_config(tmp_path, quantization=way, training={"max_steps": 6, "save_steps": 2, "logging_steps": 2})

    def stop(stage, done, total):
        if (stage, done) == ("train", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(config, progress=stop)
    folder = execute(config)
    assert json.loads((folder / "timings.json").read_text())["resumed_from_step"] == 2
    whole = execute(config.model_copy(update={"output": str(tmp_path / "whole")}))
    losses = [[row["loss"] for row in read_rows(place / "history.jsonl")] for place in (folder, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("make", [review_config, text_config])
def test_gradient_checkpointing_gives_the_same_losses(tmp_path, make):
    needs(NF4)
    losses = []
    for wanted in (False, True):
        training = {"gradient_checkpointing": wanted, "max_steps": 6, "logging_steps": 2, "eval_steps": None}
        config = make(tmp_path, quantization=NF4, training=training)
        without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        place = tmp_path / ("bert" if make is review_config else "llama") / "config.json"
        place.write_text(json.dumps(json.loads(place.read_text()) | without))
        rows = read_rows(execute(config) / "history.jsonl")
        losses.append([row["loss"] for row in rows])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("labels", [2, 5])
def test_heads_stay_whole(tmp_path, way, labels):
    """Also one that the checkpoint brings, of the right size or of another."""
    config = review_config(tmp_path, quantization=way)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = tf.AutoModelForSequenceClassification.from_pretrained(config.model, num_labels=labels)
    model.save_pretrained(config.model)
    loaded = prepare(config).base
    assert loaded.new_modules == ("classifier",)
    head = loaded.model.classifier
    assert type(head) is torch.nn.Linear
    assert (head.weight.dtype, tuple(head.weight.shape)) == (torch.float32, (2, 32))
    assert torch.equal(head.weight, model.classifier.weight) == (labels == 2)
    packed = [name for name, module in loaded.model.named_modules() if is_packed(module)]
    assert len(packed) == 13 - (not loaded.model.bert.pooler), packed
    fresh = loaded.fresh(0)
    made = plan(fresh.model, "lora", "r=2")
    wrapped = made.apply(fresh.model, task_type="SEQ_CLS", modules_to_save=list(fresh.new_modules))
    assert count_parameters(wrapped)["head_params"] == head.weight.numel() + head.bias.numel()


def test_a_new_pooler_is_no_packed_one(tmp_path):
    needs(NF4)
    folder = save_bert(tmp_path / "model")
    tf.BertModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(folder)
    loaded = prepare(review_config(tmp_path, model=str(folder), quantization=NF4)).base
    assert loaded.new_modules == ("bert.pooler.dense", "classifier")
    assert type(loaded.model.bert.pooler.dense) is torch.nn.Linear
    assert is_packed(loaded.model.bert.encoder.layer[0].attention.self.query)


def test_modules_that_the_user_keeps(tmp_path, way):
    for make, kept in ((text_config, "down_proj"), (review_config, "pooler.dense")):
        model = prepare(make(tmp_path, quantization={**way, "skip_modules": [kept]})).base.model
        packed = [name for name, module in model.named_modules() if is_packed(module)]
        assert packed
        assert not [name for name in packed if kept in name or name in ("lm_head", "classifier")]


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({}, "0 of them are given; give exactly one"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "2 of them are given"),
        ({"load_in_4bit": False}, "0 of them"),
        ({"load_in_8bit": True, "bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type=fp4 is for load_in_4bit only"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf3"}, "bnb_4bit_quant_type='nf3' cannot be used"),
        ({"load_in_4bits": True}, "unknown key 'quantization.load_in_4bits'; did you mean 'load_in_4bit'"),
        ({"torchao": "int4"}, "quantization.torchao='int4' cannot be used"),
    ],
)
def test_what_cannot_be_used(tmp_path, quantization, words):
    with pytest.raises(ConfigError) as caught:
        text_config(tmp_path, quantization=quantization)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("way", "package"), [("nf4", "bitsandbytes"), ("int8", "bitsandbytes"), ("torchao", "torchao")]
)
def test_a_missing_package_is_named_before_any_work(tmp_path, monkeypatch, way, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(tailora.requirements, "find_spec", lambda name: None if name == package else found(name))
    config = text_config(tmp_path, quantization=WAYS[way])
    with pytest.raises(ConfigError, match=rf"^quantization\.\S+ needs the package '{package}'.*tailora\[quantized\]"):
        execute(config, progress=lambda *_: pytest.fail("it began to work"))
    with pytest.raises(ConfigError, match=rf"needs the package '{package}'"):
        measure_profile(config)
    assert not (tmp_path / "runs").exists()


def test_it_is_another_run_and_another_profile(tmp_path):
    plain, packed = text_config(tmp_path), text_config(tmp_path, quantization=NF4)
    assert plain.hash != packed.hash
    assert make_config(packed.to_dict()) == packed


@pytest.mark.slow
def test_a_real_model_learns_on_four_bits(tmp_path, stories260k, data_root):
    needs(NF4)
    values = {
        "model": str(stories260k),
        "task": {"kind": "causal-lm", "train": str(data_root / "text" / "tinyshakespeare.txt"), "max_length": 128,
                 "train_examples": 800, "eval_examples": 100},
        "recipe": "spectral", "budget": "r=4", "calibration": {"examples": 16},
        "training": {"learning_rate": 1e-2, "max_steps": 100, "per_device_train_batch_size": 8, "eval_steps": 20},
    }  # fmt: skip
    losses = {}
    for name, way in {"float32": None, "nf4": NF4}.items():
        folder = execute(make_config({**values, "quantization": way, "output": str(tmp_path / name)}))
        losses[name] = [row["loss"] for row in read_rows(folder / "history.jsonl") if row["split"] == "eval"]
    assert losses["nf4"][-1] < losses["nf4"][0] - 0.2
    assert losses["nf4"][-1] < losses["float32"][-1] + 0.3
