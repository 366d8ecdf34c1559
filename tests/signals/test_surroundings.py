"""Profiles inside a caller's autocast, inference mode or no_grad."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch

import models
import tailora
from tailora.errors import UserError
from tailora.signals.elementwise import elementwise_fisher

SIGNALS = (
    "fisher",
    "fisher_lora_b",
    "gradient_norm",
    "gradient_spectrum",
    "activation_second_moment",
    "activation_spectrum",
    "output_gradient_spectrum",
)


def test_products_are_not_taken_in_autocasts_half_precision() -> None:
    """The model computes as the caller wants; what is summed of it is summed in float32, as without autocast."""
    wide, batches = models.build("llama"), models.batches("llama")
    given = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    placement = "layers:0 & role:attention.query"  # its input comes from no product that autocast would round
    asked = ("activation_spectrum",)
    plain = tailora.profile(wide, given, asked, placement=placement).signals[asked[0]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tailora.profile(wide, given, ("activation_spectrum",), placement=placement).signals[
            "activation_spectrum"
        ]
    np.testing.assert_allclose(cast, plain, rtol=1e-6, atol=1e-6 * plain.max())


def test_autocast_alone_does_not_send_examples_through_one_by_one() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tailora.profile(models.build("bert"), models.batches("bert"), SIGNALS)
    assert not found.meta["one_by_one"]


@pytest.mark.parametrize("name", ["llama", "vit"])
@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_whatever_mode_the_caller_is_in(name: str, surrounding: type) -> None:
    model, batches = models.build(name), models.batches(name)
    wanted = tailora.profile(model, batches, SIGNALS)
    with surrounding():
        found = tailora.profile(model, [{k: v.clone() for k, v in b.items()} for b in batches], SIGNALS)
    assert found.meta["data"] == wanted.meta["data"]
    for signal in SIGNALS:
        np.testing.assert_array_equal(found.signals[signal], wanted.signals[signal])


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_the_elementwise_fisher_too(name: str) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)
    model, batches = peft.get_peft_model(models.build(name), config), models.batches(name)
    wanted = elementwise_fisher(model, batches).tensors
    with torch.inference_mode():
        found = elementwise_fisher(model, [{k: v.clone() for k, v in b.items()} for b in batches]).tensors
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor)


def test_a_model_made_in_inference_mode_is_refused_in_a_sentence() -> None:
    with torch.inference_mode():
        model = models.build("llama")
    with pytest.raises(UserError, match="made under torch.inference_mode"):
        tailora.profile(model, models.batches("llama"), ("fisher",))
