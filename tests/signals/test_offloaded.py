"""Models spread by a ``device_map``: weights that lie on disk and are fetched for every call."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as tf
from accelerate import cpu_offload
from accelerate.utils import has_offloaded_params

import models
import tailora
from tailora.errors import ProfileError
from tailora.fingerprints import model_fingerprint
from tailora.offloaded import own_parameter, present
from tailora.packed import count_weights
from tailora.signals.collect import collect
from tailora.targets import find_targets

MAPS = {
    "llama": {
        "model.embed_tokens": "disk",  # the very first parameter is not there
        "model.rotary_emb": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
        "lm_head": "cpu",
    },
    "gpt2": {  # embedding and head are one parameter
        "transformer.wte": "disk",
        "lm_head": "disk",
        "transformer.wpe": "cpu",
        "transformer.h.0": "disk",
        "transformer.h.1": "cpu",
        "transformer.ln_f": "disk",
    },
    "mixtral": {
        "model.embed_tokens": "cpu",
        "model.rotary_emb": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
        "lm_head": "cpu",
    },
}
GRADIENTS = ("fisher", "gradient_norm", "gradient_spectrum", "fisher_lora_b", "activation_second_moment")
WEIGHTS = ("sensitivity", "stable_rank", "condition_number", "weight_spectrum", "weight_snr")


@pytest.fixture
def spread(tmp_path):
    """Return a function that gives a model whole and spread."""

    def make(name):
        whole = models.build(name)
        whole.save_pretrained(tmp_path / name)
        loaded = tf.AutoModelForCausalLM.from_pretrained(
            tmp_path / name, device_map=MAPS[name], offload_folder=tmp_path / "offload"
        )
        assert {p.device.type for p in loaded.parameters()} == {"cpu", "meta"}
        return whole, loaded.eval()

    return make


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_signals_are_those_of_the_whole_model(spread, name):
    whole, loaded = spread(name)
    wanted, found = (tailora.profile(m, models.batches(name), (*GRADIENTS, *WEIGHTS)) for m in (whole, loaded))
    assert any(loaded.get_parameter(f"{t.name}.weight").is_meta for t in found.targets)
    assert any(not loaded.get_parameter(f"{t.name}.weight").is_meta for t in found.targets)
    for signal in (*GRADIENTS, *WEIGHTS):
        np.testing.assert_allclose(found.signals[signal], wanted.signals[signal], rtol=1e-6, atol=1e-8, err_msg=signal)
    for key in ("model", "model_params", "dtype", "mean_loss", "one_by_one"):
        assert found.meta[key] == wanted.meta[key]
    found.check(whole)
    wanted.check(loaded)


def test_a_model_that_lies_elsewhere_as_a_whole(spread):
    whole, _ = spread("llama")
    loaded = models.build("llama")
    cpu_offload(loaded, torch.device("cpu"))
    assert all(p.is_meta for p in loaded.parameters())
    signals = ("fisher", "stable_rank")
    wanted, found = (tailora.profile(m, models.batches("llama"), signals) for m in (whole, loaded))
    for signal in signals:
        np.testing.assert_allclose(found.signals[signal], wanted.signals[signal], rtol=1e-6)
    assert found.meta["model"] == wanted.meta["model"]


def test_everything_goes_back_where_it_was(spread):
    _, loaded = spread("llama")
    names = {n: i % 2 == 0 for i, (n, _) in enumerate(loaded.named_parameters())}
    for name, flag in names.items():
        loaded.get_parameter(name).requires_grad_(flag)
    before = {n: (p.device, p.requires_grad) for n, p in loaded.named_parameters()}
    assert len({flag for device, flag in before.values() if device.type == "meta"}) == 2
    tailora.profile(loaded, models.batches("llama"), ("fisher", "stable_rank"))
    assert {n: (p.device, p.requires_grad) for n, p in loaded.named_parameters()} == before
    assert not any(m._forward_hooks for m in loaded.modules())
    broken = models.batches("llama")
    broken[1]["input_ids"] = torch.full_like(broken[1]["input_ids"], 10_000)
    with pytest.raises(IndexError):
        tailora.profile(loaded, broken, ("fisher",))
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == names


def test_weights_without_values_and_experts_elsewhere_get_a_sentence(spread):
    with torch.device("meta"):
        empty = models.BUILDERS["llama"][0]()
    with pytest.raises(ProfileError, match="is on the meta device and has no values; load the model's weights"):
        tailora.profile(empty, (), ("stable_rank",))
    _, loaded = spread("mixtral")
    targets = [t for t in find_targets(loaded) if t.kind == "parameter" and t.experts > 1]
    with pytest.raises(ProfileError, match=r"'model.layers.1.mlp.experts.gate_up_proj' is kept off its device"):
        collect(loaded, targets, models.batches("mixtral"), ("fisher",))
    ranks = tailora.profile(loaded, (), ("stable_rank",), targets=targets).signals["stable_rank"]
    wanted = tailora.profile(models.build("mixtral"), (), ("stable_rank",), targets=targets).signals["stable_rank"]
    np.testing.assert_allclose(ranks, wanted, rtol=1e-6)


def test_parameters_are_fetched_for_reading_alone(spread):
    whole, loaded = spread("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    module = loaded.get_submodule(name.rpartition(".")[0])
    assert has_offloaded_params(module)
    with present(module):
        assert torch.equal(module.weight, whole.get_parameter(name))
    assert module.weight.is_meta
    fetched = own_parameter(dict(loaded.named_modules()), name, loaded.get_parameter(name))
    assert torch.equal(fetched, whole.get_parameter(name))
    here = whole.get_parameter(name)
    assert own_parameter(dict(whole.named_modules()), name, here) is here


def test_a_parameter_that_is_shared_counts_once_even_after_a_call(spread):
    whole, loaded = spread("gpt2")
    loaded(**models.batches("gpt2")[0])
    assert len(list(loaded.parameters())) > len(list(whole.parameters())), "accelerate parts them at the first call"
    assert count_weights(loaded) == count_weights(whole)
    assert model_fingerprint(loaded) == model_fingerprint(whole)
