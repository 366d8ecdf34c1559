"""The layer: its values, dtypes, several adapters, initial weights, refusals."""

from __future__ import annotations

import math
import warnings

import peft
import pytest
import torch
from bottleneck_cases import batch_of, logits, randomise, trainable, wrap
from peft import PeftModel

import models
from reference import bottleneck_slow as slow
from tailora.bottleneck import BottleneckConfig, BottleneckLayer
from tailora.errors import UserError


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, BottleneckLayer)]


@pytest.mark.parametrize(
    ("options", "act"),
    [
        ({"placement": "houlsby"}, slow.gelu_tanh),
        ({"placement": "pfeiffer", "scaling": 0.5}, slow.relu),
        ({"use_bias": False, "activation": "tanh"}, math.tanh),
        ({"layer_norm": True, "activation": "relu"}, slow.relu),
    ],
)
def test_it_computes_what_the_formula_says(options, act):
    model = randomise(wrap(models.build("bert", dtype=torch.float64), **options).double())
    layer = layers_of(model)[-1]
    x = torch.randn(2, 3, layer.base_layer.in_features, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        found, y = layer(x), layer.base_layer(x)
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    norm = next(iter(layer.bottleneck_norm.values()), None)
    assert (norm is not None) == bool(options.get("layer_norm"))
    model.requires_grad_(False)
    for place in ((0, 0), (0, 2), (1, 1)):
        wanted = slow.adapter(
            y[place],
            down.weight,
            down.bias,
            up.weight,
            up.bias,
            act,
            options.get("scaling", 1.0),
            None if norm is None else (norm.weight, norm.bias),
        )
        torch.testing.assert_close(found[place], wanted, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(found[place], y[place])


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_the_output_is_the_blocks_own_with_an_adapter_in_between(name):
    """The addition stands before the residual connection: hooks on the base layers give the same logits."""
    model, batch = randomise(wrap(models.build(name))), batch_of(name)
    wanted = logits(model, batch)
    hooks = []
    for layer in layers_of(model):
        down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]

        def behind(module, args, y, down=down, up=up):
            return y + up(torch.nn.functional.gelu(down(y), approximate="tanh"))

        hooks.append(layer.base_layer.register_forward_hook(behind))
    with model.disable_adapter():
        found = logits(model, batch)
    assert len(hooks) == 4
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(logits(models.build(name), batch), wanted, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_bases_have_float32_adapters_unless_told_otherwise(dtype, autocast):
    base = models.build("llama", dtype=dtype, scale=1.0)
    model = peft.get_peft_model(
        base, BottleneckConfig(bottleneck=3, init_weights=False), autocast_adapter_dtype=autocast
    ).eval()
    assert {p.dtype for p in trainable(model).values()} == {torch.float32 if autocast else dtype}
    batch = batch_of("llama")
    found = model(**batch)
    assert found.logits.dtype == dtype
    found.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in trainable(model).values())
    exact = model.float()
    torch.testing.assert_close(found.logits.float(), logits(exact, batch), rtol=0.1, atol=0.1)


def test_under_autocast_the_adapter_follows():
    model, batch = wrap(models.build("bert", scale=1.0)), batch_of("bert")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logits(model, batch)
    torch.testing.assert_close(found.float(), logits(model, batch), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    gradients = []
    for checkpointed in (False, True):
        model = randomise(wrap(models.build("llama", dtype=torch.float64), task_type="CAUSAL_LM").double()).train()
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(**batch_of("llama")).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in trainable(model).items()})
    assert len(gradients[0]) == 16
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, rtol=1e-10, atol=1e-12)


def test_initial_weights():
    batch = batch_of("bert")
    base = logits(models.build("bert"), batch)
    for how, deviation in ((True, None), ("bert", 0.02), ("houlsby", None)):
        model = wrap(models.build("bert"), bottleneck=64, init_weights=how)
        layer = layers_of(model)[0]
        down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
        assert not down.bias.any()
        assert not up.bias.any()
        assert bool(up.weight.any()) == (how is not True)
        assert torch.equal(logits(model, batch), base) == (how is True)
        for weight in (down.weight, up.weight):
            if deviation is not None:
                assert weight.std().item() == pytest.approx(deviation, rel=0.1)
            if how == "houlsby":
                assert weight.abs().max() <= 2e-3
                # A normal distribution cut at twice its deviation.
                assert weight.std().item() == pytest.approx(0.88e-3, rel=0.1)
    assert all(p.any() for p in trainable(wrap(models.build("bert"), init_weights=False)).values())


def test_seed_before_wrapping_like_peft():
    one, two, other = (trainable(wrap(models.build("bert"), seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_several_adapters_by_name():
    base, batch = logits(models.build("bert"), batch_of("bert")), batch_of("bert")
    model = randomise(wrap(models.build("bert"), bottleneck=3))
    first = logits(model, batch)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        second = BottleneckConfig(placement="pfeiffer", bottleneck=5, init_weights=False, scaling=4.0)
        model.add_adapter("second", second)
    assert second.target_modules is None
    assert torch.equal(logits(model, batch), first)
    assert all("default" in name for name in trainable(model))
    model.set_adapter("second")
    assert all("second" in name for name in trainable(model))
    # 2 * 16 * 5 + 5 + 16 behind each of two feed-forwards
    assert sum(p.numel() for p in trainable(model).values()) == 2 * 181
    later = logits(model, batch)
    assert not torch.allclose(later, first, atol=1e-3)
    assert not torch.allclose(later, base, atol=1e-3)
    model.base_model.set_adapter(["default", "second"])
    layer = layers_of(model)[-1]
    x = torch.randn(2, layer.base_layer.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both, y = layer(x), layer.base_layer(x)
        layer.set_adapter(["default"])
        alone = layer(x)
        layer.set_adapter(["second"])
        torch.testing.assert_close(both - y, (alone - y) + (layer(x) - y))
    model.set_adapter("default")
    assert torch.equal(logits(model, batch), first)
    model.delete_adapter("second")
    assert "second" not in model.peft_config
    assert not any("second" in name for name, _ in model.named_parameters())
    assert torch.equal(logits(model, batch), first)


def test_an_adapter_can_be_made_anew():
    layer = layers_of(wrap(models.build("bert"), layer_norm=True))[0]
    assert sum(p.numel() for p in trainable(layer).values()) == 2 * 16 * 3 + 3 + 16 + 32
    layer.update_layer("default", BottleneckConfig(use_bias=False), 5)
    assert sum(p.numel() for p in trainable(layer).values()) == 2 * 16 * 5


def test_disabling_and_unloading_give_the_base_model():
    batch, wanted = batch_of("gpt2"), logits(models.build("gpt2"), batch_of("gpt2"))
    model = wrap(models.build("gpt2"))
    assert not torch.equal(logits(model, batch), wanted)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), wanted)
    assert trainable(model)
    plain = model.unload()
    assert not isinstance(plain, PeftModel)
    assert not layers_of(plain)
    assert torch.equal(logits(plain, batch), wanted)
    assert plain.state_dict().keys() == models.build("gpt2").state_dict().keys()


def test_merging_is_refused_and_leaves_the_model_as_it_was():
    model, batch = wrap(models.build("bert")), batch_of("bert")
    wanted = logits(model, batch)
    for merge in (model.merge_and_unload, model.merge_adapter, layers_of(model)[0].merge):
        with pytest.raises(UserError, match="not linear in the layer's input, so it cannot be merged"):
            merge()
    with pytest.warns(UserWarning, match="Nothing to do"):
        model.unmerge_adapter()
    assert not model.base_model.supports_lora_conversion()
    assert torch.equal(logits(model, batch), wanted)


@pytest.mark.parametrize("activation", ["prelu", "gellu"])
def test_activations_that_do_not_exist_or_would_train_are_refused(activation):
    with pytest.raises(UserError, match=f"activation '{activation}'"):
        wrap(models.build("bert"), activation=activation)


def test_quantised_bases_train(tmp_path):
    pytest.importorskip("bitsandbytes", reason="package bitsandbytes is not installed")
    import transformers as tf

    from tailora.tasks.quantizing import settle
    from tiny_runs import save_llama

    config = tf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = tf.AutoModelForCausalLM.from_pretrained(save_llama(tmp_path), quantization_config=config)
        settle(base)  # else bitsandbytes repacks weights on some CPUs, which fails on layers this narrow
        model = wrap(base, placement="houlsby")
    assert type(layers_of(model)[0].base_layer).__name__ == "Linear4bit"
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    ids = torch.arange(10).reshape(2, 5)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in trainable(model).values())
