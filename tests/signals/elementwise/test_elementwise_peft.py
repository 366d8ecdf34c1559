"""Every kind of peft adapter against the float64 loop, and opacus where opacus is right."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from elementwise_cases import adapt, batches_for, build, error, loop, lora, trainable

from tailora.signals.elementwise import elementwise_fisher

QV = {"target_modules": ["q_proj", "v_proj"]}
CAUSAL = {"task_type": "CAUSAL_LM"}
# name: configuration, the model, whether whole batches are exact
METHODS = {
    "rslora": (lambda: lora("llama", use_rslora=True, rank_pattern={"q_proj": 1, "down_proj": 5}), "llama", True),
    "dora": (lambda: lora("llama", use_dora=True), "llama", True),
    "dora-conv1d": (lambda: lora("gpt2", use_dora=True, target_modules=["c_attn", "c_fc"]), "gpt2", True),
    "lora-embedding": (lambda: lora("llama", target_modules=["embed_tokens", "q_proj"]), "llama", True),
    "ia3": (
        lambda: peft.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL
        ),
        "llama",
        True,
    ),
    "loha": (lambda: peft.LoHaConfig(r=2, **QV, **CAUSAL), "llama", False),
    "lokr": (lambda: peft.LoKrConfig(r=2, **QV, **CAUSAL), "llama", False),
    "oft": (lambda: peft.OFTConfig(oft_block_size=4, target_modules=["q_proj"], **CAUSAL), "llama", False),
    "boft": (lambda: peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"], **CAUSAL), "llama", False),
    "vera": (lambda: peft.VeraConfig(r=4, target_modules=["q_proj"], **CAUSAL), "llama", False),
    "prompt": (lambda: peft.PromptTuningConfig(num_virtual_tokens=3, **CAUSAL), "llama", True),
    "prefix": (lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, **CAUSAL), "llama", True),
    "experts": (
        lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"], **CAUSAL),
        "mixtral",
        False,
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_equals_the_loop(method):
    config, name, exact = METHODS[method]
    batches = batches_for(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = adapt(build(name), config())
        found = elementwise_fisher(model, batches)
        wanted = virtual_loop(model, batches) if method == "prompt" else loop(model, name, batches)
    assert (found.one_by_one == "") == exact, found.one_by_one
    assert found.examples == 7
    assert set(found.tensors) == set(trainable(model))
    assert error(found.tensors, wanted) < 1e-10


def virtual_loop(model, batches):
    """Return the loop's Fisher with the logits behind the virtual tokens: the last of them predicts the first token."""
    from reference import elementwise_slow as slow

    def causal(outputs, row):
        extra = outputs.logits.shape[1] - row["labels"].shape[1]
        logp = outputs.logits[0].log_softmax(-1)
        terms = [-logp[extra + t - 1, y] for t, y in enumerate(row["labels"][0].tolist()) if y != -100]
        return sum(terms) / len(terms)

    return slow.fisher(model, trainable(model), batches, causal)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_opacus_agrees_where_it_is_right(name):
    """Plain LoRA on linear layers, equal lengths; elsewhere opacus is silently wrong (see the benchmark)."""
    grad_sample = pytest.importorskip("opacus.grad_sample", reason="opacus is not installed")
    batch = batches_for(name, sizes=(4,))[0]
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    batch["labels"] = batch["input_ids"].clone() if batch["labels"].ndim == 2 else batch["labels"]
    model = adapt(build(name), lora(name))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found = elementwise_fisher(model, [batch])
    assert found.one_by_one == ""
    names = trainable(model)
    # opacus takes no gradient in evaluation mode.
    model.train()
    wrapped = grad_sample.GradSampleModule(model, loss_reduction="mean", strict=False)
    logits = wrapped(**batch).logits
    if name == "llama":
        tokens = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none"
        )
        tokens.mean().backward()
    else:
        torch.nn.functional.cross_entropy(logits, batch["labels"]).backward()
    parameters = dict(model.named_parameters())
    wanted = {name: parameters[name].grad_sample.square().mean(dim=0) for name in names}
    assert error(found.tensors, wanted) < 1e-10


def test_an_adapter_that_is_merged_is_refused():
    from tailora.errors import ProfileError

    model = adapt(build("llama"), lora("llama", target_modules=["q_proj"]))
    model.merge_adapter()
    with pytest.raises(ProfileError, match="reaches none of the parameters"):
        elementwise_fisher(model, batches_for("llama"))


def test_only_the_active_adapter_counts():
    model = adapt(build("llama"), lora("llama", target_modules=["q_proj"]))
    model.add_adapter("second", lora("llama", target_modules=["v_proj"]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    found = elementwise_fisher(model, batches_for("llama"))
    assert found.one_by_one == ""
    assert found.unreached
    assert all("second" in name for name in found.unreached)
    assert all(not found.tensors[name].any() for name in found.unreached)


def test_accelerate_hooks_stay_in_place():
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model, batches = adapt(build("llama"), lora("llama", target_modules=["q_proj"])), batches_for("llama")
    plain = elementwise_fisher(model, batches)
    leaf = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default")
    add_hook_to_module(leaf, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    hooked, inner = leaf.forward, leaf._old_forward
    found = elementwise_fisher(model, batches)
    assert found.one_by_one == ""
    assert error(found.tensors, plain.tensors) < 1e-12
    assert leaf.forward == hooked
    assert leaf._old_forward == inner
