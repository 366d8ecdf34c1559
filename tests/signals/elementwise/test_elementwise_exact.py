"""The elementwise Fisher against the float64 loop on the main architectures."""

from __future__ import annotations

import copy

import pytest
import torch
from elementwise_cases import adapt, batches_for, build, error, loop, lora, trainable

from reference import elementwise_slow as slow
from tailora.signals.elementwise import elementwise_fisher

FIVE = ("bert", "llama", "gpt2", "t5", "vit")


@pytest.mark.parametrize("name", FIVE)
def test_lora_factors_equal_the_loop_in_float64(name):
    model, batches = adapt(build(name), lora(name)), batches_for(name, sizes=(4, 3, 1))
    found = elementwise_fisher(model, batches)
    assert found.one_by_one == ""
    assert found.examples == 8
    assert found.unreached == ()
    wanted = loop(model, name, batches)
    assert error(found.tensors, wanted) < 1e-10
    assert sum(found.trace().values()) == pytest.approx(sum(float(t.sum()) for t in wanted.values()), rel=1e-10)
    assert {n: tuple(t.shape) for n, t in found.tensors.items()} == {n: tuple(t.shape) for n, t in wanted.items()}


@pytest.mark.parametrize("name", FIVE)
def test_lora_factors_equal_the_loop_in_float32(name):
    # Weights of usual size: the larger ones of the other tests make the softmax amplify the model's own rounding.
    model = adapt(build(name, torch.float32, scale=1.0), lora(name), scale=0.1)
    batches = batches_for(name, dtype=torch.float32)
    found = elementwise_fisher(model, batches)
    assert found.one_by_one == ""
    assert all(t.dtype == torch.float32 for t in found.tensors.values())
    assert error(found.tensors, loop(model, name, batches)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_squared_in_float32(dtype):
    model, batches = adapt(build("llama", dtype), lora("llama")), batches_for("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.25 if parameter.ndim > 1 else 1)
    found = elementwise_fisher(model, batches)
    assert found.one_by_one == ""
    wanted = loop(model, "llama", batches)
    # Only the model's own rounding is left: the sums agree although single squares lie below fp16's least number.
    assert any((t > 0).any() and float(t[t > 0].min()) < 6e-8 for t in wanted.values())
    assert sum(found.trace().values()) == pytest.approx(sum(float(t.sum()) for t in wanted.values()), rel=0.05)


@pytest.mark.parametrize(("name", "exact"), [("opt", True), ("albert", True), ("deberta", False), ("mixtral", False)])
def test_architectures_on_which_others_are_silently_wrong(name, exact):
    model, batches = adapt(build(name), lora(name)), batches_for(name)
    found = elementwise_fisher(model, batches)
    assert (found.one_by_one == "") == exact, found.one_by_one
    assert error(found.tensors, loop(model, name, batches)) < 1e-10


def test_absolute_values_and_classifier_heads_and_biases():
    config = lora("bert", bias="all", modules_to_save=["classifier"])
    model, batches = adapt(build("bert"), config), batches_for("bert")
    # The softmax does not see a key's bias: its gradient is zero, and what is measured is rounding.
    linear = [n for n in trainable(model) if "LayerNorm" not in n and "key.base_layer.bias" not in n]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in linear)
    assert any(n.endswith("base_layer.bias") for n in linear)
    assert any("classifier.modules_to_save" in n for n in linear)
    for reduction, reduce in (("square", torch.square), ("absolute", torch.abs)):
        found = elementwise_fisher(model, batches, reduction=reduction)
        assert found.one_by_one == ""
        assert error(found.tensors, loop(model, "bert", batches, reduce=reduce)) < 1e-10


def test_examples_without_labels_do_not_dilute_the_mean():
    model = adapt(build("llama"), lora("llama"))
    batch = batches_for("llama", sizes=(4,))[0]
    alone = {k: v[1:] for k, v in batch.items()}
    batch["labels"][0] = -100
    one, two = (elementwise_fisher(model, [b]) for b in (batch, alone))
    assert one.examples == two.examples == 3
    assert one.mean_loss == pytest.approx(two.mean_loss)
    assert error(one.tensors, two.tensors) < 1e-10


def test_it_does_not_matter_how_examples_are_batched():
    model = adapt(build("gpt2"), lora("gpt2"))
    whole = batches_for("gpt2", sizes=(6,))
    rows = [{k: v[i : i + 2] for k, v in whole[0].items()} for i in (0, 2, 4)]
    for kind in ("empirical", "true"):
        one, two = (elementwise_fisher(model, b, kind=kind, seed=5) for b in (whole, rows))
        three = elementwise_fisher(model, whole, kind=kind, seed=5, one_by_one=True)
        assert error(one.tensors, two.tensors) < 1e-10
        assert error(three.tensors, two.tensors) < 1e-10


def test_sum_loss_weighs_long_examples():
    model, batches = adapt(build("llama"), lora("llama")), batches_for("llama")
    found = elementwise_fisher(model, batches, loss="causal-lm-sum")
    assert found.one_by_one == ""

    def total(outputs, row):
        return slow.causal_lm(outputs, row) * int((row["labels"][:, 1:] != -100).sum())

    twin = copy.deepcopy(model)
    assert error(found.tensors, slow.fisher(twin, trainable(twin), batches, total)) < 1e-10


def test_a_custom_loss_per_example():
    model, batches = adapt(build("bert"), lora("bert")), batches_for("bert")

    def margin(outputs, batch):
        return -outputs.logits[torch.arange(len(batch["labels"])), batch["labels"]]

    found = elementwise_fisher(model, batches, loss=margin)
    assert found.loss == "margin"
    twin = copy.deepcopy(model)
    wanted = slow.fisher(twin, trainable(twin), batches, lambda o, row: margin(o, row).sum())
    assert error(found.tensors, wanted) < 1e-10


def test_true_exact_is_the_expectation_over_classes():
    model, batches = adapt(build("bert"), lora("bert")), batches_for("bert")
    twin = copy.deepcopy(model)
    wanted = slow.fisher_exact(twin, trainable(twin), batches)
    for one_by_one in (None, True):
        found = elementwise_fisher(model, batches, kind="true-exact", one_by_one=one_by_one)
        assert found.examples == 7
        assert error(found.tensors, wanted) < 1e-10


def test_draws_from_the_model_approach_the_expectation():
    model = adapt(build("bert"), lora("bert", target_modules=["value"]))
    one = {k: v[:1] for k, v in batches_for("bert")[0].items()}
    # The same example many times, each with a draw of its own, is the expectation over classes.
    many = {k: v.expand(600, *v.shape[1:]).contiguous() for k, v in one.items()}
    exact = elementwise_fisher(model, [one], kind="true-exact")
    drawn = elementwise_fisher(model, [many], kind="true", seed=3)
    assert drawn.one_by_one == ""
    assert error(drawn.tensors, exact.tensors) < 0.25
    assert error(drawn.tensors, elementwise_fisher(model, [many], kind="true", seed=3).tensors) == 0
    assert error(drawn.tensors, elementwise_fisher(model, [many], kind="true", seed=4).tensors) > 0
    assert error(drawn.tensors, elementwise_fisher(model, [one]).tensors) > 0.25


def test_token_draws_keep_their_places_and_follow_the_model():
    from tailora.signals.elementwise.kinds import draw_labels

    logits = torch.full((2, 4, 5), -50.0)
    logits[:, :, 3] = 0.0
    labels = torch.tensor([[-100, 1, -100, 2], [-100, -100, 0, -100]])
    drawn = draw_labels("causal-lm", logits, labels, [0, 1])
    assert drawn.tolist() == [[-100, 3, -100, 3], [-100, -100, 3, -100]]
    uniform = draw_labels("token", torch.zeros(1, 4000, 4), torch.zeros(1, 4000, dtype=torch.long), [7])
    assert uniform[0].bincount(minlength=4).min() > 850
    values = draw_labels("regression", torch.full((2000, 1), 2.0), torch.zeros(2000), list(range(2000)))
    assert values.mean() == pytest.approx(2.0, abs=0.06)
    assert values.var() == pytest.approx(0.5, rel=0.12)


def test_base_weights_without_any_adapter():
    model, batches = build("llama"), batches_for("llama")
    names = [n for n, p in model.named_parameters() if n.endswith(("proj.weight", "embed_tokens.weight"))]
    found = elementwise_fisher(model, batches, parameters=names)
    assert found.one_by_one == ""
    assert list(found.tensors) == names
    assert error(found.tensors, slow.fisher(copy.deepcopy(model), names, batches, slow.causal_lm)) < 1e-10


def test_conv1d_weights_and_a_tied_head_of_gpt2():
    model, batches = build("gpt2"), batches_for("gpt2")
    names = [n for n, p in model.named_parameters() if ".c_fc." in n or ".c_attn." in n]
    found = elementwise_fisher(model, batches, parameters=names)
    assert found.one_by_one == ""
    assert error(found.tensors, slow.fisher(copy.deepcopy(model), names, batches, slow.causal_lm)) < 1e-10
    tied = ["transformer.wte.weight"]
    found = elementwise_fisher(model, batches, parameters=tied)
    assert "shared by layers of different kinds" in found.one_by_one
    assert error(found.tensors, slow.fisher(copy.deepcopy(model), tied, batches, slow.causal_lm)) < 1e-10
