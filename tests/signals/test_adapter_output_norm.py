"""The norm of what a LoRA adds to its target's output, against loops and against what peft's layers really put out."""

from __future__ import annotations

import copy

import numpy as np
import peft
import pytest
import torch

import models
import tailora
from reference import gradients_slow as slow
from reference import signals_slow
from tailora.errors import UserError
from tailora.profile_merging import merge
from tailora.profiles import Profile
from tailora.signals.adapted import without_adapters
from tailora.signals.collect import collect
from tailora.targets import find_targets

NAME = ("adapter_output_norm",)


def adapted(name="llama", dtype=torch.float64, prefix="", **settings):
    """Return a peft model whose B is not zero, as after training."""
    options = {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "lora_dropout": 0.5, **settings}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = peft.get_peft_model(models.build(name, dtype=dtype), peft.LoraConfig(**options))
        model = model.to(dtype)
        randomise(model)
    return model.eval()


def randomise(model):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)


def vectors_of(model, target, batches):
    """Return the inputs of a target's layer at real positions, from one row at a time."""
    held, found = [], []
    handle = model.get_submodule(target.name).register_forward_hook(lambda _, args, __: held.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            for row in slow.rows_of(batch):
                held.clear()
                model(**row)
                mask = row.get("attention_mask")
                if target.stack == "decoder" and not (
                    target.cross_attention and target.role.endswith(("key", "value"))
                ):
                    mask = row["labels"] != -100
                keep = slice(None) if mask is None else mask[0].bool()
                found += list(held[0][0][keep])
    handle.remove()
    return found


def adapters_of(layer, names=("default",)):
    return [
        (layer.lora_A[n].weight, layer.lora_B[n].weight, layer.lora_B[n].bias, layer.scaling[n])
        for n in names
        if n in layer.lora_A
    ]


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "t5", "vit"])
def test_it_equals_the_loop_over_real_positions(name):
    model, batches = adapted(name), models.batches(name)
    found = tailora.profile(model, batches, NAME)
    inner = model.get_base_model()
    assert [t.name for t in found.targets] == [t.name for t in select_all(name)]
    for i in (0, len(found.targets) // 2, len(found.targets) - 1):
        target = found.targets[i]
        layer = inner.get_submodule(target.name)
        wanted = signals_slow.adapter_output_norm(vectors_of(inner, target, batches), adapters_of(layer))
        assert found.signals["adapter_output_norm"][i] == pytest.approx(wanted, rel=1e-10)


def select_all(name):
    from tailora.placement import select

    return select(find_targets(models.build(name)), "all-linear")


def test_it_is_what_the_layer_adds():
    """On one row without padding: the layer's output less that of the layer it wraps, which needs no formula."""
    model = adapted("llama")
    batch = {k: v[:1] for k, v in models.batches("llama")[0].items()}
    found = tailora.profile(model, [batch], NAME, placement="role:ffn.down")
    inner = model.get_base_model()
    for target, value in zip(found.targets, found.signals["adapter_output_norm"], strict=True):
        layer, added = inner.get_submodule(target.name), []
        handle = layer.register_forward_hook(lambda m, args, out: added.append(out - m.base_layer(args[0])))  # noqa: B023
        with torch.no_grad():
            inner(**batch)
        handle.remove()
        assert value == pytest.approx(float((added[0] ** 2).sum(-1).mean()), rel=1e-9)


def test_padding_and_batches_do_not_matter():
    model = adapted("bert")
    batch = models.batches("bert", sizes=(4,))[0]
    one = tailora.profile(model, [batch], NAME)
    garbage = {**batch, "input_ids": torch.where(batch["attention_mask"].bool(), batch["input_ids"], 7)}
    for other in ([garbage], list(slow.rows_of(batch))):
        two = tailora.profile(model, other, NAME)
        np.testing.assert_allclose(two.signals[NAME[0]], one.signals[NAME[0]], rtol=1e-10)


def test_rank_stabilised_scaling_and_a_bias_count():
    plain, stable = (
        tailora.profile(
            adapted("bert", use_rslora=flag),
            models.batches("bert"),
            NAME,
            placement="layers:0 & attention & !role:attention.output",
        )
        for flag in (False, True)
    )
    assert [t.depth for t in plain.targets] == [0, 0, 0]
    # Nothing before these targets depends on the scaling, which grows from alpha / r to alpha / sqrt(r).
    np.testing.assert_allclose(stable.signals[NAME[0]], 3 * plain.signals[NAME[0]], rtol=1e-10)
    model = adapted("bert", lora_bias=True)
    inner = model.get_base_model()
    target = next(t for t in find_targets(models.build("bert")) if t.role == "attention.query")
    layer = inner.get_submodule(target.name)
    with torch.no_grad():
        layer.lora_B["default"].bias.fill_(0.7)
    found = tailora.profile(model, models.batches("bert"), NAME, targets=[target])
    vectors = vectors_of(inner, target, models.batches("bert"))
    assert found.signals[NAME[0]][0] == pytest.approx(
        signals_slow.adapter_output_norm(vectors, adapters_of(layer)), rel=1e-10
    )


def test_active_adapters_are_added_before_the_norm():
    model = adapted("llama")
    model.add_adapter("other", peft.LoraConfig(r=2, lora_alpha=7, target_modules=["q_proj", "down_proj"]))
    model.double()
    randomise(model)
    model.base_model.set_adapter(["default", "other"])
    batches = models.batches("llama")
    found = tailora.profile(model, batches, NAME)
    assert found.meta["adapter"]["names"] == ["default", "other"]
    inner = model.get_base_model()
    for i in (0, 1):  # a query with both, a key with one
        target = found.targets[i]
        adapters = adapters_of(inner.get_submodule(target.name), ("default", "other"))
        assert len(adapters) == 2 - i
        wanted = signals_slow.adapter_output_norm(vectors_of(inner, target, batches), adapters)
        assert found.signals[NAME[0]][i] == pytest.approx(wanted, rel=1e-10)
    model.set_adapter("other")
    alone = tailora.profile(model, batches, NAME)
    assert alone.meta["adapter"] != found.meta["adapter"]
    assert [value > 0 for value in alone.signals[NAME[0]][:3]] == [True, False, False]


def test_of_a_dora_the_low_rank_part_is_measured():
    model, batches = adapted("llama", use_dora=True), models.batches("llama")
    found = tailora.profile(model, batches, NAME)
    inner, target = model.get_base_model(), found.targets[0]
    layer = inner.get_submodule(target.name)
    wanted = signals_slow.adapter_output_norm(vectors_of(inner, target, batches), adapters_of(layer))
    assert found.signals[NAME[0]][0] == pytest.approx(wanted, rel=1e-10)


def test_the_profile_is_of_the_base_models_targets(tmp_path):
    base = models.build("bert")
    model = adapted("bert", dtype=torch.float32, target_modules=["query", "value"], modules_to_save=["classifier"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = tailora.profile(model, models.batches("bert"), NAME)
    assert {t.role for t in found.targets} == {"attention.query", "attention.value"}
    assert (found.meta["model_class"], found.meta["loss"]) == (type(base).__name__, "")
    assert found.meta["model_params"] == sum(p.numel() for p in base.parameters())
    found.check(base)
    assert Profile.load(found.save(tmp_path)).hash == found.hash
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    with torch.no_grad():
        model.get_base_model().bert.encoder.layer[0].attention.self.query.lora_B["default"].weight.mul_(2)
    other = tailora.profile(model, models.batches("bert"), NAME)
    assert other.meta["model"] == found.meta["model"]
    assert other.meta["adapter"] != found.meta["adapter"]


def test_layers_that_were_injected_without_a_wrapper():
    model = models.build("llama")
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["v_proj"]), model)
    randomise(model)
    found = tailora.profile(model, models.batches("llama"), NAME)
    assert [t.role for t in found.targets] == ["attention.value"] * 2
    assert (found.signals[NAME[0]] > 0).all()


def test_profiles_of_one_adapter_merge_and_of_two_do_not():
    model, batches = adapted("llama"), models.batches("llama")
    parts = [tailora.profile(model, [batch], NAME, keep_sums=True) for batch in batches]
    whole = tailora.profile(model, batches, NAME)
    np.testing.assert_allclose(merge(parts).signals[NAME[0]], whole.signals[NAME[0]], rtol=1e-12)
    with torch.no_grad():
        model.get_base_model().model.layers[0].mlp.up_proj.lora_A["default"].weight.mul_(2)
    other = tailora.profile(model, [batches[1]], NAME, keep_sums=True)
    with pytest.raises(UserError, match="profile number 2 has adapter"):
        merge([parts[0], other])


def test_the_tree_without_adapters_shares_the_weights_and_leaves_the_model():
    model = adapted("llama")
    tree = [type(m) for m in model.modules()]
    bare = without_adapters(model.get_base_model())
    plain = models.build("llama", dtype=torch.float64)
    assert [n for n, _ in bare.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [(n, type(m)) for n, m in bare.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert bare.get_parameter("model.layers.0.self_attn.q_proj.weight") is layer.base_layer.weight
    assert [type(m) for m in model.modules()] == tree


def refused(change, **settings):
    model = adapted("llama", **settings)
    change(model)
    return model


@pytest.mark.parametrize(
    ("made", "how", "sentence"),
    [
        (lambda: models.build("llama"), {}, "carries no LoRA, whose output"),
        (lambda: refused(lambda m: m.merge_adapter()), {}, "is merged into the weights; call unmerge_adapter"),
        (lambda: refused(lambda m: m.base_model.disable_adapter_layers()), {}, "are switched off"),
        (lambda: adapted("llama", target_modules=["q_proj"]), {"placement": "ffn"}, "selects no target that carries"),
        (
            lambda: adapted("llama", target_modules=["q_proj"]),
            {"targets": find_targets(models.build("llama"))[:3]},
            "carries no LoRA, whose output could be measured; leave it out of the targets",
        ),
        (
            lambda: adapted("llama", target_modules=["embed_tokens", "q_proj"]),
            {"placement": "role:embedding"},
            "'model.embed_tokens' is on an embedding or an expert tensor",
        ),
        (
            lambda: adapted(
                "mixtral",
                lora_dropout=0.0,
                target_modules=["q_proj"],
                target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            ),
            {},
            "'model.layers.0.mlp.experts.gate_up_proj' is on an embedding or an expert tensor",
        ),
        (
            lambda: adapted("llama", task_type="CAUSAL_LM", alora_invocation_tokens=[3]),
            {},
            "is a ALoraLinearVariant, whose output is not",
        ),
    ],
)
def test_what_cannot_be_measured_gets_a_sentence(made, how, sentence):
    with pytest.raises(UserError, match=sentence):
        tailora.profile(made(), models.batches("llama"), NAME, **how)


def test_base_and_adapter_signals_do_not_mix():
    for signals in (("fisher", *NAME), (*NAME, "stable_rank")):
        with pytest.raises(UserError, match="measure them in two profiles"):
            tailora.profile(adapted("llama"), models.batches("llama"), signals)
    with pytest.raises(UserError, match="already carries adapter layers"):
        tailora.profile(adapted("llama"), models.batches("llama"), ("fisher",))
    base = models.build("llama")
    with pytest.raises(UserError, match="carries no LoRA, whose output could be measured; give a peft model"):
        collect(base, find_targets(base)[1:2], models.batches("llama"), NAME)


def test_a_layer_without_an_active_adapter():
    model = adapted("llama")
    silent = copy.deepcopy(model)
    for module in silent.modules():
        if hasattr(module, "lora_A"):
            module._active_adapter = []
    with pytest.raises(UserError, match="has an active adapter; call set_adapter first"):
        tailora.profile(silent, models.batches("llama"), NAME)
