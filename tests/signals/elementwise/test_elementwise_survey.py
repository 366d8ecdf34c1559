"""Thirty-one tiny architectures: the Fisher of LoRA on all linear layers is the loop's, in batches or one by one."""

from __future__ import annotations

import copy
import warnings

import peft
import pytest
from elementwise_cases import adapt, error

import survey
from reference import elementwise_slow as slow
from survey import CASES, LOSS, batches_of
from tailora.errors import TailoraError
from tailora.signals.elementwise import elementwise_fisher


def build(name):
    """Return a tiny float64 model with LoRA on all linear layers (without the output projection that peft refuses)."""
    targets = ["in_proj", "x_proj"] if name == "mamba" else "all-linear"
    return adapt(survey.build(name), peft.LoraConfig(r=2, target_modules=targets))


def test_there_are_as_many_as_the_title_says():
    assert len(CASES) == 31


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_exact_or_refused_with_a_sentence(name):
    family = CASES[name][0]
    batches = batches_of(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build(name)
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        try:
            found = elementwise_fisher(model, batches)
        except TailoraError as refusal:
            assert ";" in str(refusal)
            pytest.skip(f"refused: {refusal}")
        wanted = slow.fisher(copy.deepcopy(model), names, batches, LOSS[family])
    print(f"{name}: {found.one_by_one or 'whole batches'}")
    assert found.examples == 7
    # Mamba's recurrence is computed in float32 whatever the model's dtype.
    assert error(found.tensors, wanted) < (1e-5 if name == "mamba" else 1e-10)
