"""Layers that are not used in the plain way: outputs changed in place, weights read without a call, square experts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

import models
import tailora
from reference import gradients_slow as slow
from reference import signals_slow
from tailora.errors import ProfileError
from tailora.placement import select
from tailora.signals.collect import Collecting, collect
from tailora.signals.examples import real_positions
from tailora.signals.fresh_factors import fresh_a
from tailora.targets import Target, find_targets


class Toy(nn.Module):
    """Two biased layers, the second one's output used in a way of its own, and a classifier."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.config, self.use = tf.PretrainedConfig(), use
        self.first, self.second, self.classifier = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        inner = torch.tanh(self.first(inputs))
        if self.use == "weight":
            outer = nn.functional.linear(inner, self.second.weight, self.second.bias)
        else:
            outer = self.second(inner)
        if self.use == "divide":
            outer /= 3
        elif self.use == "add":
            outer += inner
        elif self.use == "relu":
            outer = torch.relu_(outer)
        elif self.use == "unused":
            outer = inner
        return SequenceClassifierOutput(logits=self.classifier(outer.mean(dim=1)))


def toy(use: str) -> Toy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Toy(use).double()


def toy_batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"inputs": torch.randn(n, 5, 6, generator=generator, dtype=torch.float64), "labels": torch.arange(n) % 2}
        for n in (4, 3)
    ]


def toy_fisher(model: Toy) -> dict[str, float]:
    found: dict[str, list[float]] = {"first": [], "second": []}
    for batch in toy_batches():
        for row, label in zip(batch["inputs"], batch["labels"], strict=True):
            model.zero_grad()
            nn.functional.cross_entropy(model(row[None]).logits, label[None]).backward()
            for name, squares in found.items():
                grad = model.get_submodule(name).weight.grad
                squares.append(0.0 if grad is None else float(grad.square().sum()))
    return {name: float(np.mean(squares)) for name, squares in found.items()}


@pytest.mark.parametrize("use", ["plain", "divide", "add", "relu", "unused"])
def test_an_output_changed_in_place_keeps_its_gradient(use: str) -> None:
    """A biased layer's output on 3-D inputs is a view, and torch drops the hook on a view that is changed in place."""
    found = tailora.profile(toy(use), toy_batches(), ("fisher", "activation_second_moment"))
    wanted = toy_fisher(toy(use))
    assert (wanted["second"] > 0) is (use != "unused")
    for target, value in zip(found.targets, found.signals["fisher"], strict=True):
        if target.name in wanted:
            assert value == pytest.approx(wanted[target.name], rel=1e-10)
    assert not found.meta["one_by_one"]
    # A layer that is called has inputs, whether or not the loss reaches it.
    alone = tailora.profile(toy(use), toy_batches(), ("activation_second_moment",))
    np.testing.assert_allclose(
        found.signals["activation_second_moment"], alone.signals["activation_second_moment"], rtol=1e-12
    )
    assert (alone.signals["activation_second_moment"] > 0).all()


def test_a_layer_whose_weight_is_read_without_a_call_is_refused() -> None:
    with pytest.raises(ProfileError, match="reads the weight of 'second' without calling that layer.*regex:second"):
        tailora.profile(toy("weight"), toy_batches())
    found = tailora.profile(toy("weight"), toy_batches(), placement="all-linear & !regex:second$")
    assert "second" not in [target.name for target in found.targets]


@pytest.mark.parametrize(
    ("config", "model", "inside"),
    [
        (tf.WavLMConfig, tf.WavLMForSequenceClassification, ("q_proj", "k_proj", "v_proj", "out_proj")),
        (tf.MambaConfig, tf.MambaForCausalLM, ("dt_proj",)),
    ],
)
def test_known_layers_of_that_kind_are_no_targets(config, model, inside) -> None:
    with torch.device("meta"):
        made = model(config(num_hidden_layers=1, hidden_size=16, num_attention_heads=2))
    names = [target.name for target in find_targets(made)]
    assert names
    assert not [name for name in names if name.split(".")[-1] in inside]


def test_a_layer_that_chance_leaves_out_is_not_refused() -> None:
    model = models.build("bert")
    layer = model.bert.encoder.layer[1]
    plain, calls = layer.forward, []

    def sometimes(states, *args, **kwargs):
        calls.append(1)
        return states if len(calls) == 1 else plain(states, *args, **kwargs)

    layer.forward = sometimes
    found = tailora.profile(model, models.batches("bert"), check=False)
    assert (found.signals["fisher"] > 0).all()


def test_square_experts_lie_as_their_module_says() -> None:
    """GPT-OSS keeps experts as [in, out], and its real down projection is square, so that no shape tells."""
    config = tf.GptOssConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_local_experts=3,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    config._experts_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.GptOssForCausalLM(config).double().eval()
    targets = [t for t in select(find_targets(model), "all-linear") if t.name.endswith("down_proj")]
    assert [target.shape for target in targets] == [(16, 16)]
    found = collect(model, targets, models.batches("llama"), ("fisher_lora_b",), Collecting(seed=5))
    weight = model.get_parameter(targets[0].name).requires_grad_()
    examples = []
    for batch in models.batches("llama"):
        for row in slow.rows_of(batch):
            weight.grad = None
            slow.LOSSES["causal-lm"](model(**row), row).backward()
            examples.append([[matrix.T for matrix in weight.grad]])
    wanted = signals_slow.fisher_lora_b(examples, 0, fresh_a(targets[0], 5))
    assert found.signals["fisher_lora_b"][0] == pytest.approx(wanted, rel=1e-10)


def test_a_callers_hook_that_changes_the_output_comes_after_ours() -> None:
    """A LoRA adds to what the layer itself returns, which the hook then triples."""
    model = toy("plain")
    model.second.register_forward_hook(lambda module, args, output: 3 * output)
    found = tailora.profile(model, toy_batches())
    twin = toy("plain")
    twin.second.register_forward_hook(lambda module, args, output: 3 * output)
    place = [target.name for target in found.targets].index("second")
    assert found.signals["fisher"][place] == pytest.approx(toy_fisher(twin)["second"], rel=1e-10)


def test_cross_attention_in_one_matrix_reads_the_encoders_positions() -> None:
    """GPT-2's ``crossattention.c_attn`` makes keys and values of the encoder's states."""
    target = Target(
        name="decoder.h.0.crossattention.c_attn",
        shape=(32, 16),
        kind="conv1d",
        role="attention.qkv",
        depth=0,
        stack="decoder",
        cross_attention=True,
    )
    encoder, decoder = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[1, 0, 0], [1, 1, 0]])
    batch = {"attention_mask": encoder, "decoder_attention_mask": decoder}
    found = real_positions(batch, target, 2, 3)
    assert found is not None
    assert torch.equal(found, encoder.bool())
