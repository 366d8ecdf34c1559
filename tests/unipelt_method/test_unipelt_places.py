"""Where the parts go, what they cost, and which models and options are refused before anything is changed."""

from __future__ import annotations

import copy
import math
import warnings

import peft
import pytest
import torch
from peft import PeftModel
from unipelt_cases import SMALL, batch_of, build, layers_of, logits, trainable, wrap

import models
import survey
from tailora.errors import UserError
from tailora.unipelt import UniPELTConfig, unipelt_parameters
from tailora.unipelt.attention import ConfigView

REACHED = {
    "sequence": {"bert", "roberta", "distilbert", "electra", "albert", "vit", "deit", "dinov2"},
    "token": {"opt", "llama", "qwen3", "gemma2"},
}


@pytest.mark.parametrize("name", survey.CASES)
def test_each_part_is_reached_or_the_model_is_refused_as_it_was(name):
    base, batch = survey.build(name), survey.batches_of(survey.CASES[name][0])[0]
    kinds = [kind for kind, names in REACHED.items() if name in names]
    config = UniPELTConfig(**SMALL, activation="gelu")
    if not kinds:
        before = {key: type(module) for key, module in base.named_modules()}
        with pytest.raises(UserError, match=r"UniPELT.*; use "):
            wrap(base, config)
        assert {key: type(module) for key, module in base.named_modules()} == before
        assert not any(isinstance(getattr(module, "config", None), ConfigView) for module in base.modules())
        assert not any(module._forward_pre_hooks for module in base.modules())
        return
    cost = unipelt_parameters(base, config)
    plain = logits(base, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = wrap(base, config).double()
    assert model.peft_config["default"].gate == kinds[0]
    assert config.gate == "auto"
    assert config.target_modules is None
    assert len(layers_of(model)) == (3 if name == "albert" else 6)
    assert sum(p.numel() for p in trainable(model).values()) == cost
    found = model(**batch).logits
    assert not torch.allclose(found, plain, atol=1e-8)
    found.square().sum().backward()
    for key, parameter in trainable(model).items():
        # Behind an up projection of zero, a down projection and a gate get a gradient of zero.
        zero = any(part in key for part in ("unipelt_a.", "unipelt_down.", "unipelt_gate."))
        assert bool(parameter.grad is not None and parameter.grad.any()) != zero, key


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefix_projection": 7},
        {"lora_rank": 0},
        {"prefix_length": 0},
        {"bottleneck": 0},
        {"bottleneck": None, "reduction_factor": 5},
        {"exclude_modules": r".*\.0\..*"},
        {"target_modules": ["query", "q_proj", "down_proj"]},
        {"lora_rank": 0, "bottleneck": 0},
    ],
)
def test_the_count_is_exact(name, options):
    config = UniPELTConfig(**{**SMALL, **options})
    model = wrap(build(name), config)
    assert unipelt_parameters(build(name), config) == sum(p.numel() for p in trainable(model).values())
    assert all("unipelt_" in key for key in trainable(model))


def test_the_count_of_bert_base_by_hand():
    import transformers as tf

    with torch.device("meta"):
        base = tf.BertModel(tf.BertConfig())
    gates = 4 * 769
    lora, adapter, prefix = 2 * 8 * 2 * 768, 2 * 768 * 48 + 48 + 768, 10 * 2 * 768
    assert unipelt_parameters(base, UniPELTConfig()) == 12 * (gates + lora + adapter + prefix) == 1_410_672


def test_what_a_config_refuses():
    for options, told in (
        ({"gate": "mean"}, "gate 'mean'"),
        ({"lora_rank": -1}, "lora_rank=-1 is not a whole number of at least 0"),
        ({"prefix_length": 2.5}, "prefix_length=2.5"),
        ({"prefix_projection": 0}, "prefix_projection=0 is not a whole number of at least 1"),
        ({"bottleneck": 3, "reduction_factor": 4}, "both set the adapter's size"),
        ({"reduction_factor": math.nan}, "is not above 0"),
        ({"lora_rank": 0, "prefix_length": 0, "bottleneck": 0}, "are all 0"),
        ({"target_modules": "all-linear"}, "leave it out"),
    ):
        with pytest.raises(UserError, match=told):
            UniPELTConfig(**options)


def test_what_a_model_refuses():
    for name, change, options, told in (
        ("bert", {}, {"target_modules": ["key"]}, "which UniPELT has no part for"),
        ("bert", {}, {"lora_rank": 0, "target_modules": ["value"]}, "has no part for"),
        ("bert", {}, {"activation": "gellu"}, "activation 'gellu'"),
        ("bert", {}, {"activation": "prelu"}, "has parameters of its own"),
        ("bert", {"chunk_size_feed_forward": 4}, {}, "chunk_size_feed_forward=4"),
        ("llama", {"_attn_implementation_internal": "flash_attention_2"}, {}, "attn_implementation='sdpa'"),
    ):
        base = models.build(name)
        for key, value in change.items():
            setattr(base.config, key, value)
        with pytest.raises(UserError, match=told):
            wrap(base, **options)
        assert not layers_of(base)
        assert not any(isinstance(getattr(module, "config", None), ConfigView) for module in base.modules())


def test_a_bias_per_pair_of_positions_is_refused():
    import transformers as tf

    base = tf.T5EncoderModel(tf.T5Config(**survey.TINY_T5))
    with pytest.raises(UserError, match="is a T5Attention, whose keys and values UniPELT's prefix cannot join"):
        wrap(base)


def test_initial_weights():
    batch = batch_of("bert")
    plain = logits(build("bert"), batch)
    model = wrap(build("bert"), UniPELTConfig(prefix_length=0, bottleneck=3))
    assert torch.equal(logits(model, batch), plain)
    model = wrap(build("bert"), UniPELTConfig(bottleneck=3))
    # A prefix is seen from the start.
    assert not torch.allclose(logits(model, batch), plain, atol=1e-6)
    for key, parameter in trainable(model).items():
        if "gate" in key and "bias" in key:
            assert not parameter.any()
    gates = torch.cat([p.flatten() for key, p in trainable(model).items() if "gate" in key and "weight" in key])
    assert gates.std().item() == pytest.approx(0.02, rel=0.2)
    tables = torch.cat([p.flatten() for key, p in trainable(model).items() if "unipelt_prefix." in key])
    assert tables.std().item() == pytest.approx(1, rel=0.1)
    one, two, other = (trainable(wrap(build("bert"), seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_disabling_and_unloading_give_the_base_model(name):
    batch, wanted = batch_of(name), logits(build(name), batch_of(name))
    model = wrap(build(name))
    assert not torch.allclose(logits(model, batch), wanted, atol=1e-6)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), wanted)
    for merge in (model.merge_and_unload, model.merge_adapter, layers_of(model)[0].merge):
        with pytest.raises(UserError, match="cannot be merged into weights"):
            merge()
    with pytest.warns(UserWarning, match="Nothing to do"):
        model.unmerge_adapter()
    plain = model.unload()
    assert not isinstance(plain, PeftModel)
    assert not layers_of(plain)
    assert torch.equal(logits(plain, batch), wanted)
    assert plain.state_dict().keys() == build(name).state_dict().keys()
    assert not any(isinstance(getattr(module, "config", None), ConfigView) for module in plain.modules())
    assert not any(module._forward_pre_hooks for module in plain.modules())


def test_several_adapters_by_name():
    model, batch = wrap(build("bert")), batch_of("bert")
    first = logits(model, batch)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model.add_adapter("second", UniPELTConfig(lora_rank=0, prefix_length=4, bottleneck=2, gate="token"))
    model.double()
    assert torch.equal(logits(model, batch), first)
    model.set_adapter("second")
    second = logits(model, batch)
    assert all("second" in key for key in trainable(model))
    assert not torch.allclose(second, first, atol=1e-6)
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UserError, match=r"\['default', 'second'\] are active together"):
        logits(model, batch)
    model.set_adapter("default")
    assert torch.equal(logits(model, batch), first)
    model.delete_adapter("second")
    assert not any("second" in key for key, _ in model.named_parameters())
    assert torch.equal(logits(model, batch), first)


def test_beside_lora_of_peft():
    """A layer of peft's is a linear layer like any other."""
    base = build("llama")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base.add_adapter(lora, "low")
        base.double()
        alone = logits(base, batch_of("llama"))
        base.add_adapter(UniPELTConfig(**SMALL, init_weights=False), "united")
    found = logits(base.double(), batch_of("llama"))
    assert not torch.allclose(found, alone, atol=1e-6)
    base.disable_adapters()
    assert torch.equal(logits(base, batch_of("llama")), logits(build("llama"), batch_of("llama")))


def test_a_copy_stands_on_its_own():
    model, batch = wrap(build("llama")), batch_of("llama")
    wanted = logits(model, batch)
    twin = copy.deepcopy(model)
    twin.get_base_model().set_attn_implementation("eager")
    assert model.get_base_model().config._attn_implementation == "sdpa"
    views = [module.config for module in twin.modules() if isinstance(getattr(module, "config", None), ConfigView)]
    assert len(views) == 2
    assert all(view.base is twin.get_base_model().config for view in views)
    with torch.no_grad():
        for parameter in trainable(twin).values():
            parameter.zero_()
    assert not torch.allclose(logits(twin, batch), wanted, atol=1e-6)
    assert torch.equal(logits(model, batch), wanted)
    twin.unload()
    assert torch.equal(logits(model, batch), wanted)
