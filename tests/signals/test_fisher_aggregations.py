"""FIM-LoRA's squares aggregated by maximum and Euclidean norm, against the loop over single examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import models
import tailora
from reference import gradients_slow as slow
from reference import signals_slow
from tailora.placement import select
from tailora.profile_merging import load_with_sums, merge
from tailora.signals.collect import Collecting, collect
from tailora.signals.fresh_factors import fresh_a
from tailora.targets import find_targets

NAMES = ("fisher_batch_b", "fisher_batch_b_max", "fisher_batch_b_l2")


@pytest.mark.parametrize("name", models.FIVE)
def test_the_aggregations_are_the_loops(name):
    model = models.build(name, dtype=torch.float64)
    targets = select(find_targets(model), "all-linear")
    batches = models.batches(name)
    found = collect(model, targets, batches, NAMES, Collecting(seed=3))
    loss = slow.LOSSES[models.BUILDERS[name][1]]
    twin = models.build(name, dtype=torch.float64)
    parts = [slow.example_gradients(twin, targets, [batch], loss) for batch in batches]
    for index, target in enumerate(targets):
        squares = signals_slow.batch_b_squares(parts, index, fresh_a(target, 3))
        flat = [float(value) for matrix in squares for value in matrix.flatten()]
        expected = {"fisher_batch_b_max": max(flat), "fisher_batch_b_l2": sum(v**2 for v in flat) ** 0.5}
        if len(squares) == 1:
            expected["fisher_batch_b"] = sum(flat) / len(flat)
        for signal, value in expected.items():
            assert found.signals[signal][index] == pytest.approx(value, rel=1e-9), (signal, target.name)


def test_a_merged_profile_is_that_of_all_batches(tmp_path):
    model = models.build("llama", dtype=torch.float64)
    batches = models.batches("llama", sizes=(4, 3, 5))
    whole = tailora.profile(model, batches, signals=NAMES)
    for number, part in enumerate((batches[:2], batches[2:])):
        tailora.profile(model, part, signals=NAMES, keep_sums=True).save(tmp_path / str(number))
    merged = merge([load_with_sums(tmp_path / str(number)) for number in range(2)])
    for name in NAMES:
        np.testing.assert_allclose(merged.signals[name], whole.signals[name], rtol=1e-9)


def test_they_deal_other_ranks_than_the_mean():
    """The study's rows are different runs only if the aggregation changes a plan."""
    model = models.build("llama", dtype=torch.float64)
    profile = tailora.profile(model, models.batches("llama", sizes=(4, 4)), signals=NAMES)
    plans = {name: tailora.plan(profile, "fim-lora-faithful", "r=4", signal=name) for name in NAMES}
    assert len({tuple(plan.ranks.values()) for plan in plans.values()}) == 3
    # The published rule keeps the sum of ranks, whatever it is aggregated by.
    assert len({sum(plan.ranks.values()) for plan in plans.values()}) == 1
