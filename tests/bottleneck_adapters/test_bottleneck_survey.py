"""Thirty-one tiny architectures: adapters stand where they should and are reached, or are refused with a sentence."""

from __future__ import annotations

import warnings

import pytest
import torch
from bottleneck_cases import logits, trainable, wrap

import survey
from tailora.bottleneck import BottleneckConfig, bottleneck_parameters
from tailora.errors import UserError

# XLNet's attention output is a parameter that no layer holds; Mamba has no attention; experts are fused.
REFUSED = {
    "houlsby": {"xlnet", "mixtral", "qwen3-moe", "mamba"},
    "pfeiffer": {"mixtral", "qwen3-moe", "mamba"},
}
# Two blocks each; ALBERT shares one, T5 and BART have two towers, Swin two stages of two blocks.
FEED_FORWARDS = {"albert": 1, "t5": 4, "bart": 4, "swin": 4}
CROSS = {"t5": 2, "bart": 2}


@pytest.mark.parametrize("name", survey.CASES)
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_each_adapter_is_reached_and_changes_nothing_at_first(name, placement):
    base, batch = survey.build(name), survey.batches_of(survey.CASES[name][0])[0]
    config = BottleneckConfig(placement=placement, bottleneck=3, activation="gelu")
    if name in REFUSED[placement]:
        with pytest.raises(UserError, match="with target_modules"):
            wrap(base, config)
        return
    before, cost = logits(base, batch), bottleneck_parameters(base, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = wrap(base, config).to(before.dtype)
        found = model(**batch).logits
    assert torch.equal(found, before)
    places = FEED_FORWARDS.get(name, 2)
    places += (places + CROSS.get(name, 0)) if placement == "houlsby" else 0
    assert len(model.base_model.targeted_module_names) == places
    assert sum(p.numel() for p in trainable(model).values()) == cost
    found.double().square().sum().backward()
    for key, parameter in trainable(model).items():
        assert parameter.grad is not None
        # Behind a zero up projection the down projection gets a gradient of zero.
        assert bool(parameter.grad.any()) == ("bottleneck_up" in key), key
