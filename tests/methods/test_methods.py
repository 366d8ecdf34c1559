"""Training methods: what the optimizers hold and at which rate."""

from __future__ import annotations

import pytest
import torch

from models import _bert as bert
from tailora.errors import UnknownNameError, UserError
from tailora.methods import METHODS, OptimizerSettings
from tailora.plans import plan


@pytest.fixture
def peft_model():
    torch.manual_seed(0)
    model = bert()
    return plan(model, "lora", "r=2").apply(model, task_type="SEQ_CLS", modules_to_save=["classifier"])


SETTINGS = OptimizerSettings(1e-3, 0.01)


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_contract_every_trained_parameter_once(entry, peft_model):
    optimizer = entry.value.optimizer(peft_model, SETTINGS)
    assert entry.summary
    if optimizer is None:
        return
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in peft_model.parameters() if p.requires_grad)


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_contract_unknown_option(entry, peft_model):
    with pytest.raises(UnknownNameError, match="unknown training option 'ratioo'"):
        entry.value.optimizer(peft_model, SETTINGS, {"ratioo": 2})


def test_standard_leaves_it_to_the_trainer(peft_model):
    assert METHODS["standard"].optimizer(peft_model, SETTINGS) is None


def test_lora_plus_rates(peft_model):
    optimizer = METHODS["lora-plus"].optimizer(peft_model, SETTINGS, {"ratio": 4})
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in peft_model.named_parameters():
        if parameter.requires_grad and "lora_A" in name:
            assert rates[id(parameter)] == 1e-3
        if parameter.requires_grad and "lora_B" in name:
            assert rates[id(parameter)] == pytest.approx(4e-3)


@pytest.mark.parametrize("ratio", [0, -1, "16", True, float("inf"), float("nan")])
def test_lora_plus_refuses_bad_ratios(peft_model, ratio):
    with pytest.raises(UserError, match="must be a positive number"):
        METHODS["lora-plus"].optimizer(peft_model, SETTINGS, {"ratio": ratio})
