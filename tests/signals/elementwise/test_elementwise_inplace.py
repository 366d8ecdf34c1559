"""Models that change a layer's output in place, which autograd forbids for some outputs of its own functions."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
import transformers as tf
from elementwise_cases import adapt, error, trainable
from transformers.pytorch_utils import Conv1D

from reference import elementwise_slow as slow
from tailora.signals.elementwise import elementwise_fisher
from tailora.signals.elementwise.functions import LinearTap, TableTap, Tap, spark

CHANGES = {
    "divide": lambda y: y.div_(3.0),
    "relu": lambda y: y.relu_(),
    "view": lambda y: y.view(*y.shape[:-1], 2, -1).mul_(0.5).view(y.shape),
    "part": lambda y: y[..., 1:].tanh_() if y.ndim == 2 else y[:, :1].tanh_(),
    "add": lambda y: y.add_(1.0).sigmoid_(),
}
LAYERS = ("linear", "unbiased", "conv1d", "table", "norm")


class Changing(torch.nn.Module):
    """Five kinds of layers, each with an output that is changed in place, on sequences and on their means."""

    def __init__(self, change, layer):
        super().__init__()
        self.table, self.norm, self.conv1d = torch.nn.Embedding(9, 4), torch.nn.LayerNorm(4), Conv1D(4, 4)
        self.linear, self.unbiased = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4, bias=False)
        self.pooler, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)
        self.change, self.layer = change, layer

    def changed(self, name, y):
        if name == self.layer:
            z = CHANGES[self.change](y)
            return y if self.change == "part" else z
        return y

    def forward(self, input_ids, labels=None):
        hidden = self.changed("table", self.table(input_ids))
        for name in ("linear", "norm", "unbiased", "conv1d"):
            hidden = hidden + self.changed(name, getattr(self, name)(hidden))
        pooled = self.changed(self.layer, self.pooler(hidden.mean(1)))
        return type("Out", (), {"logits": self.head(pooled.tanh()), "loss": None})()


def tokens(sizes=(4, 3)):
    generator = torch.Generator().manual_seed(1)
    return [
        {"input_ids": torch.randint(0, 9, (size, 5), generator=generator), "labels": torch.arange(size) % 3}
        for size in sizes
    ]


def made(kind, *args):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(*args).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def wanted_of(model, batches):
    twin = copy.deepcopy(model).double()
    return slow.fisher(twin, trainable(twin), batches, slow.classification)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("only", ["all", "bias", "weight"])
def test_an_output_changed_in_place_equals_the_loop(change, layer, only):
    model = made(Changing, change, layer)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(only in ("all", name.rpartition(".")[2]))
    found = elementwise_fisher(model, tokens())
    assert found.one_by_one == ""
    assert error(found.tensors, wanted_of(model, tokens())) < 1e-10


class BiasOnly(torch.nn.Module):
    """Changes a layer's input in place after the call, which is allowed while its weight is frozen."""

    def __init__(self):
        super().__init__()
        self.table, self.linear, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)

    def forward(self, input_ids, labels=None):
        hidden = self.table(input_ids)
        y = self.linear(hidden)
        return type("Out", (), {"logits": self.head((hidden.mul_(2.0) + y.relu_()).mean(1)), "loss": None})()


def test_the_input_of_a_layer_whose_bias_alone_is_trained_may_be_changed():
    model = made(BiasOnly)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in ("table.weight", "linear.bias", "head.bias"))
    found = elementwise_fisher(model, tokens())
    assert found.one_by_one == ""
    assert error(found.tensors, wanted_of(model, tokens())) < 1e-10


class Adapted(torch.nn.Module):
    """A table and a linear layer for adapters, both with outputs that are changed in place."""

    def __init__(self):
        super().__init__()
        self.table, self.dense, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)

    def forward(self, input_ids, labels=None):
        hidden = self.table(input_ids)
        hidden.mul_(1.5).sigmoid_()
        hidden = self.dense(hidden)
        hidden.div_(2.0).relu_()
        return type("Out", (), {"logits": self.head(hidden.mean(1)), "loss": None})()


ADAPTERS = {
    "lora": peft.LoraConfig(r=2, target_modules=["table", "dense"]),
    "lora-bias": peft.LoraConfig(r=2, target_modules=["dense"], lora_bias=True, bias="all", modules_to_save=["head"]),
    "dora": peft.LoraConfig(r=2, target_modules=["dense"], use_dora=True),
    "ia3": peft.IA3Config(target_modules=["dense"], feedforward_modules=[]),
    "ia3-input": peft.IA3Config(target_modules=["dense"], feedforward_modules=["dense"]),
    "saved": peft.LoraConfig(r=2, target_modules=["table"], modules_to_save=["dense"]),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_whose_output_is_changed_in_place(name):
    model = adapt(made(Adapted), ADAPTERS[name])
    found = elementwise_fisher(model, tokens())
    assert found.one_by_one == ""
    assert error(found.tensors, wanted_of(model, tokens())) < 1e-10


@pytest.mark.parametrize("config", [None, peft.LoraConfig(r=2, target_modules=["value"])])
def test_longformer_divides_its_queries_in_place(config):
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    settings = tf.LongformerConfig(vocab_size=61, **size, attention_window=4, pad_token_id=0, num_labels=3)
    model = made(tf.LongformerForSequenceClassification, settings).eval()
    if config is not None:
        config.modules_to_save = ["query_global"]
        model = adapt(model, config)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("query" in name)
    batches = [
        {"input_ids": b["input_ids"] + 3, "attention_mask": torch.ones_like(b["input_ids"]), "labels": b["labels"]}
        for b in tokens()
    ]
    found = elementwise_fisher(model, batches)
    # Its global attention has the tokens on the first axis, so examples are taken one by one; the look must not fail.
    assert "query_global" in found.one_by_one
    assert any("query_global" in name and float(tensor.sum()) > 0 for name, tensor in found.tensors.items())
    assert error(found.tensors, wanted_of(model, batches)) < 1e-10


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 4), (2, 3, 2, 4)])
def test_no_output_is_a_view(shape, biased):
    def take(*_):
        pass

    x, weight = torch.randn(shape), torch.randn(3, 4)
    y = LinearTap.apply(x, weight, torch.randn(3) if biased else None, spark(x), take, True)
    assert not y._is_view()
    assert y.is_contiguous()
    same = Tap.apply(x, x.clone(), spark(x), take)
    assert not same._is_view()
    assert same.data_ptr() == x.data_ptr()
    assert not TableTap.apply(torch.zeros(shape[:-1], dtype=torch.long), weight, spark(x), take)._is_view()
