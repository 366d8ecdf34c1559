"""Logits are gone before the backward pass: over a large vocabulary they are a good part of the peak."""

from __future__ import annotations

import weakref
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

import models
import tailora
from tailora.signals.elementwise import elementwise_fisher
from tailora.signals.losses import causal_lm_loss


class Watch:
    """A loss that notes, when gradients start to flow, whether its logits are still held."""

    def __init__(self) -> None:
        self.held: list[bool] = []

    def __call__(self, outputs: Any, batch: Any) -> Tensor:
        losses = causal_lm_loss(outputs, batch)
        if losses.requires_grad:
            logits = weakref.ref(outputs.logits)
            losses.register_hook(lambda _: self.held.append(logits() is not None))
        return losses


def test_a_profile_lets_go_of_the_logits() -> None:
    watch = Watch()
    tailora.profile(models.build("llama"), models.batches("llama"), signals=("fisher",), loss=watch)
    assert watch.held
    assert not any(watch.held)


@pytest.mark.parametrize("one_by_one", [None, True])
def test_the_elementwise_fisher_lets_go_of_the_logits(one_by_one: bool | None) -> None:
    watch = Watch()
    torch.manual_seed(0)
    model = peft.get_peft_model(
        models.build("llama"), peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)
    )
    elementwise_fisher(model, models.batches("llama"), loss=watch, one_by_one=one_by_one)
    assert watch.held
    assert not any(watch.held)
