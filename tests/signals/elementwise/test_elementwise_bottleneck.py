"""The elementwise Fisher of bottleneck adapters and of layer norms against the loop."""

from __future__ import annotations

import peft
import pytest
import torch
from elementwise_cases import adapt, batches_for, build, error, loop, lora, trainable

from tailora.bottleneck import BottleneckConfig
from tailora.signals.elementwise import elementwise_fisher


def config(**kw):
    return BottleneckConfig(**{"bottleneck": 3, "init_weights": False, **kw})


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "vit", "albert", "opt"])
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_adapters_equal_the_loop_from_whole_batches(name, placement):
    model, batches = adapt(build(name), config(placement=placement)), batches_for(name, sizes=(4, 3, 1))
    found = elementwise_fisher(model, batches)
    assert found.one_by_one == ""
    assert found.examples == 8
    assert found.unreached == ()
    assert len(found.tensors) == len(trainable(model))
    assert error(found.tensors, loop(model, name, batches)) < 1e-10


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("reduction", ["square", "absolute"])
def test_the_adapters_own_layer_norm_and_scale(name, reduction):
    model, batches = adapt(build(name), config(layer_norm=True, scaling=0.5, activation="silu")), batches_for(name)
    found = elementwise_fisher(model, batches, reduction=reduction)
    assert found.one_by_one == ""
    reduce = torch.square if reduction == "square" else torch.abs
    assert error(found.tensors, loop(model, name, batches, reduce=reduce)) < 1e-10


def test_experts_attention_is_exact_too():
    model, batches = adapt(build("mixtral"), config(target_modules=["o_proj"])), batches_for("mixtral")
    found = elementwise_fisher(model, batches)
    assert error(found.tensors, loop(model, "mixtral", batches)) < 1e-10


@pytest.mark.parametrize("name", ["bert", "gpt2", "opt", "vit"])
def test_layer_norms_of_the_base_that_train_beside(name):
    """As Houlsby et al. do; GPT-2's are called ln, ViT's layernorm."""
    norms = {"bert": ["LayerNorm"], "gpt2": ["ln_1", "ln_2", "ln_f"], "opt": ["final_layer_norm"], "vit": ["layernorm"]}
    model, batches = adapt(build(name), config(modules_to_save=norms[name])), batches_for(name)
    saved = [n for n in trainable(model) if "modules_to_save" in n]
    assert saved
    found = elementwise_fisher(model, batches)
    assert found.one_by_one == ""
    assert set(saved) <= set(found.tensors)
    assert error(found.tensors, loop(model, name, batches)) < 1e-10


def test_layer_norms_without_any_adapter_in_float32():
    model, batches = build("bert", torch.float32, scale=1.0), batches_for("bert", dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("LayerNorm" in name)
    found = elementwise_fisher(model, batches)
    assert found.one_by_one == ""
    assert len(found.tensors) == 10
    assert error(found.tensors, loop(model, "bert", batches)) < 1e-5


def test_the_down_projection_has_no_fisher_while_the_up_projection_is_zero():
    """The default start has the same trap as LoRA's B = 0; the other starts do not."""
    for how, zero in ((True, True), ("bert", False), ("houlsby", False)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = peft.get_peft_model(build("bert"), config(init_weights=how)).double().eval()
        found = elementwise_fisher(model, batches_for("bert"))
        for name, value in found.trace().items():
            assert (value == 0) == (zero and "bottleneck_down" in name), (how, name)


def test_lora_and_adapters_in_one_model():
    base = build("llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        both = peft.inject_adapter_in_model(lora("llama", init_lora_weights=False), base, adapter_name="low")
        both = peft.inject_adapter_in_model(config(), both, adapter_name="small").double().eval()
    for name, parameter in both.named_parameters():
        parameter.requires_grad_("lora_" in name or "bottleneck_" in name)
    batches = batches_for("llama")
    found = elementwise_fisher(both, batches)
    assert found.one_by_one == ""
    assert any("lora_" in name for name in found.tensors)
    assert any("bottleneck_" in name for name in found.tensors)
    assert error(found.tensors, loop(both, "llama", batches)) < 1e-10
