"""Where adapters stand, what they cost, and what is refused."""

from __future__ import annotations

import copy
import re

import peft
import pytest
import torch
from bottleneck_cases import ARCHITECTURES, batch_of, logits, trainable, wrap
from hypothesis import given
from hypothesis import strategies as st

import models
import tailora
from tailora.bottleneck import BottleneckConfig, BottleneckLayer, bottleneck_parameters, bottleneck_sizes
from tailora.errors import UnknownNameError, UserError

BEHIND = {
    "bert": (r"attention\.output\.dense", r"layer\.\d\.output\.dense"),
    "deberta": (r"attention\.output\.dense", r"layer\.\d\.output\.dense"),
    "albert": (r"attention\.dense", r"ffn_output"),
    "llama": (r"self_attn\.o_proj", r"mlp\.down_proj"),
    "opt": (r"self_attn\.out_proj", r"fc2"),
    "gpt2": (r"attn\.c_proj", r"mlp\.c_proj"),
    "t5": (r"(SelfAttention|EncDecAttention)\.o", r"DenseReluDense\.wo"),
    "vit": (r"attention\.o_proj|attention\.output\.dense", r"mlp\.fc2|output\.dense"),
}
# Attention outputs and feed-forwards of two layers; ALBERT's are shared, T5 has two towers and cross-attention.
COUNTS = {"albert": (1, 1), "t5": (6, 4)}


def adapted(model):
    return [name for name, module in model.named_modules() if isinstance(module, BottleneckLayer)]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_places_and_costs_on_each_architecture(name, placement):
    config = BottleneckConfig(placement=placement, bottleneck=5)
    base = models.build(name)
    sizes, cost = bottleneck_sizes(base, config), bottleneck_parameters(base, config)
    model = wrap(base, config)
    names = [found.removeprefix("base_model.model.") for found in adapted(model)]
    attention, feed_forward = (
        [found for found in names if re.search(rf"(^|\.)({rule})$", found)] for rule in BEHIND[name]
    )
    feed_forward = [found for found in feed_forward if found not in attention]
    wanted = COUNTS.get(name, (2, 2))
    assert len(feed_forward) == wanted[1]
    assert len(attention) == (wanted[0] if placement == "houlsby" else 0)
    assert sorted(names) == sorted(attention + feed_forward) == sorted(sizes)
    assert set(sizes.values()) == {5}
    assert cost == len(names) * (2 * 16 * 5 + 5 + 16)
    assert cost == sum(p.numel() for p in trainable(model).values()) == model.get_nb_trainable_parameters()[0]
    # The caller's configuration is as it was, and serves for another model.
    assert config.target_modules is None
    assert len(adapted(wrap(models.build("llama"), config))) == (4 if placement == "houlsby" else 2)


@pytest.mark.parametrize(
    ("options", "each"),
    [
        ({"bottleneck": 4}, 2 * 16 * 4 + 4 + 16),
        ({"bottleneck": 4, "use_bias": False}, 2 * 16 * 4),
        ({"bottleneck": 4, "layer_norm": True}, 2 * 16 * 4 + 4 + 16 + 32),
        ({"reduction_factor": 3}, 2 * 16 * 5 + 5 + 16),
        ({"reduction_factor": 0.5}, 2 * 16 * 32 + 32 + 16),
        ({}, 2 * 16 * 1 + 1 + 16),
        ({"reduction_factor": 1000}, 2 * 16 * 1 + 1 + 16),
    ],
)
def test_the_count_is_what_trains(options, each):
    config, base = BottleneckConfig(**options), models.build("bert")
    assert bottleneck_parameters(base, config) == 4 * each
    targets = tailora.find_targets(base)
    assert bottleneck_parameters(targets, config) == 4 * each
    assert sum(p.numel() for p in trainable(wrap(base, config)).values()) == 4 * each


def test_sizes_of_single_layers():
    base = models.build("bert")
    pattern = {"^bert.encoder.layer.0.output.dense": 7, r"attention\.output\.dense": 2}
    config = BottleneckConfig(bottleneck=3, size_pattern=pattern)
    sizes = bottleneck_sizes(base, config)
    assert sizes == {
        "bert.encoder.layer.0.attention.output.dense": 2,
        "bert.encoder.layer.0.output.dense": 7,
        "bert.encoder.layer.1.attention.output.dense": 2,
        "bert.encoder.layer.1.output.dense": 3,
    }
    model = wrap(base, config)
    for name, size in sizes.items():
        layer = model.get_submodule(f"base_model.model.{name}")
        assert layer.bottleneck_down["default"].weight.shape == (size, 16)
        assert layer.bottleneck_up["default"].weight.shape == (16, size)
    assert bottleneck_parameters(models.build("bert"), config) == sum(p.numel() for p in trainable(model).values())


@given(sizes=st.lists(st.integers(1, 9), min_size=4, max_size=4), bias=st.booleans(), norm=st.booleans())
def test_any_sizes_are_counted_exactly(sizes, bias, norm):
    base = copy.deepcopy(BERT)
    names = list(bottleneck_sizes(base, BottleneckConfig()))
    config = BottleneckConfig(
        size_pattern={"^" + re.escape(n): m for n, m in zip(names, sizes, strict=True)}, use_bias=bias, layer_norm=norm
    )
    assert list(bottleneck_sizes(base, config).values()) == sizes
    counted = bottleneck_parameters(base, config)
    assert counted == sum(p.numel() for p in trainable(wrap(base, config)).values())


BERT = models.build("bert")


def test_modules_can_be_named_and_left_out():
    base = models.build("llama")
    config = BottleneckConfig(bottleneck=2, target_modules=["down_proj"], exclude_modules=["layers.0.mlp.down_proj"])
    assert list(bottleneck_sizes(base, config)) == ["model.layers.1.mlp.down_proj"]
    assert adapted(wrap(base, config)) == ["base_model.model.model.layers.1.mlp.down_proj"]
    config = BottleneckConfig(bottleneck=2, exclude_modules=r".*layers\.1\..*")
    assert len(bottleneck_sizes(models.build("llama"), config)) == 2
    assert all("layers.0" in name for name in adapted(wrap(models.build("llama"), config)))


def test_attention_of_experts_can_be_followed_but_fused_experts_cannot():
    base = models.build("mixtral")
    before = copy.deepcopy(base.state_dict())
    with pytest.raises(UserError, match="a tensor of 3 fused experts whose outputs no layer returns; name the modules"):
        wrap(base)
    assert not adapted(base)
    assert base.state_dict().keys() == before.keys()
    model = wrap(base, target_modules=["o_proj"])
    assert len(adapted(model)) == 2
    assert not torch.equal(logits(model, batch_of("mixtral")), logits(models.build("mixtral"), batch_of("mixtral")))


def test_a_model_without_known_roles_needs_names():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = torch.nn.Linear(4, 6), torch.nn.Linear(6, 2)

        def forward(self, x):
            return self.two(self.one(x).relu())

    with pytest.raises(UserError, match="needs layers of the role attention.output, of which this model has none"):
        wrap(Plain())
    model = wrap(Plain(), target_modules=["one"])
    assert sum(p.numel() for p in trainable(model).values()) == 2 * 6 * 3 + 3 + 6


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size_pattern": {"q_proj": 3}}, "size_pattern key 'q_proj' matches none of the 4 modules"),
        ({"size_pattern": {"o_proj": 3, "self_attn.o_proj": 4}}, "different sizes"),
        ({"target_modules": ["embed_tokens"]}, "'model.embed_tokens' is a Embedding, which no bottleneck adapter"),
        ({"target_modules": ["norm"]}, "'model.norm' is a LlamaRMSNorm, which no bottleneck adapter"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_anything_changes(options, sentence):
    base = models.build("llama")
    with pytest.raises(UserError, match=re.escape(sentence)):
        wrap(base, BottleneckConfig(**options))
    assert not adapted(base)


def test_a_projection_that_torch_reads_without_calling_it_is_refused():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(8, 2)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    with pytest.raises(UserError, match=r"'attention.out_proj' is a .*linear layers that the model calls"):
        wrap(torch.nn.Sequential(Block())[0], target_modules=["out_proj"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bottleneck": 4, "reduction_factor": 2}, "both set the adapter's size"),
        ({"bottleneck": 0}, "bottleneck=0 is not a whole number of at least 1; leave a layer out with exclude_modules"),
        ({"bottleneck": 2.5}, "bottleneck=2.5 is not a whole number"),
        ({"reduction_factor": 0}, "reduction_factor=0 is not above 0"),
        ({"reduction_factor": float("nan")}, "reduction_factor=nan is not above 0"),
        ({"size_pattern": {"a": 0}}, "size_pattern['a']=0 is not a whole number"),
        ({"size_pattern": {"(": 3}}, "size_pattern key '(' is no regular expression"),
        ({"target_modules": "all-linear"}, "would put an adapter behind every projection"),
    ],
)
def test_values_that_cannot_be_used(options, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        BottleneckConfig(**options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"placement": "houlsbi"}, "did you mean 'houlsby'?"),
        ({"init_weights": "berd"}, "did you mean 'bert'?"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(options, sentence):
    with pytest.raises(UnknownNameError, match=re.escape(sentence)):
        BottleneckConfig(**options)


def test_a_further_adapter_finds_its_places_behind_other_adapters():
    """Also where LoRA was injected before: what counts is the model underneath."""
    base = models.build("llama")
    wanted = bottleneck_sizes(base, BottleneckConfig(bottleneck=2))
    lora = peft.LoraConfig(r=2, target_modules=["o_proj", "q_proj"])
    injected = peft.inject_adapter_in_model(lora, base, adapter_name="low")
    model = peft.inject_adapter_in_model(BottleneckConfig(bottleneck=2), injected, adapter_name="small")
    assert set(adapted(model)) == set(wanted)
    layer = model.model.layers[0].self_attn.o_proj
    assert isinstance(layer.base_layer, peft.tuners.lora.Linear)
    model.train()
    model(**batch_of("llama")).loss.backward()
    assert layer.bottleneck_up["small"].weight.grad.any()
