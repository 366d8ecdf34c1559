"""Thirty-one tiny architectures: the profile of the base weights is the loop's, in batches or one by one."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest

import survey
import tailora
from reference import gradients_slow as slow
from reference import signals_slow
from survey import CASES, LOSS, batches_of

# Why whole batches are not exact, where they are not.
ONE_BY_ONE = {
    "deberta": "_proj",
    "deberta-v2": "_proj",
    "xlnet": "differ|in a batch of",
    "opt": "fc1",
    "mixtral": "experts",
    "qwen3-moe": "experts",
    "swin": "in a batch of",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_profile_is_exact(name):
    family = CASES[name][0]
    batches = batches_of(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = survey.build(name)
        found = tailora.profile(model, batches, signals=("fisher", "gradient_norm", "activation_second_moment"))
        examples = slow.example_gradients(copy.deepcopy(model), found.targets, batches, LOSS[family])
    assert found.meta["examples"] == 7
    tolerance = 1e-5 if name == "mamba" else 1e-9  # Mamba's recurrence is in float32 whatever the model's dtype
    np.testing.assert_allclose(found.signals["fisher"], slow.fisher_trace(examples), rtol=tolerance, atol=1e-20)
    norms = [signals_slow.gradient_norm(examples, i) for i, _ in enumerate(found.targets)]
    np.testing.assert_allclose(found.signals["gradient_norm"], norms, rtol=tolerance, atol=1e-14)
    print(f"{name}: {found.meta['one_by_one'] or 'whole batches'}")
    assert bool(found.meta["one_by_one"]) == (name in ONE_BY_ONE)
