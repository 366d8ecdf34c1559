"""EVA's ranks: the fitted order, the published rule, and peft's own implementation."""

from __future__ import annotations

import numpy as np
import pytest

import models
import tailora
from tailora.allocation import ALLOCATORS, Problem, unit_costs
from tailora.errors import UserError
from tailora.targets import Target

ALLOCATOR = ALLOCATORS["explained-variance"]


def problem(ratios, budget_rank=2, r_max=6, **options):
    targets = tuple(Target(f"layers.{i}.m", "ffn.up", i, (10 + 5 * i, 10)) for i in range(len(ratios)))
    signals = {"explained_variance": np.array(ratios, dtype=float)}
    costs = unit_costs(targets, r_max)
    return Problem(targets, costs, signals, sum(t.cost(budget_rank) for t in targets), 0, options)


def test_the_published_rule_keeps_the_largest_ratios_up_to_rho():
    found = ALLOCATOR.faithful(
        problem([[0.5, 0.4, 0.05, 0.04, 0.01], [0.3, 0.2, 0.1, 0.1, 0.1], [0.02, 0.01, 0, 0, 0]])
    )
    assert found.tolist() == [2, 4, 0], "0.5 0.4 0.3 0.2 0.1 0.1 are the six largest, four at most on one target"
    tight = ALLOCATOR.faithful(problem([[0.5, 0.4, 0.3, 0.2, 0.1], [0.01] * 5], rho=1))
    assert tight.tolist() == [2, 2]


def test_gains_per_parameter_are_the_ratios():
    given = problem([[0.5, 0.1], [0.3, 0.2]])
    gains = ALLOCATOR.gains(given)
    np.testing.assert_allclose((gains / given.unit_costs)[:, :2], [[0.5, 0.1], [0.3, 0.2]])


def test_bad_signals_and_options():
    with pytest.raises(UserError, match="rho=0.5 is below 1"):
        ALLOCATOR.faithful(problem([[0.5, 0.1]], rho=0.5))
    with pytest.raises(UserError, match="no spectrum of shares"):
        ALLOCATOR.gains(problem([[0.5, -0.1]]))


def test_ranks_are_those_of_pefts_eva():
    """One batch, on which peft's incremental components are exact; query, key and value share an input there too."""
    from peft import EvaConfig, LoraConfig, get_peft_model
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    batch = models.batches("llama", sizes=(6,))[0]
    found = tailora.profile(models.build("llama"), [batch], signals=("explained_variance",))
    plan = tailora.plan(found, recipe="eva-ranks-faithful", budget="r=3")
    eva = EvaConfig(rho=2.0, use_label_mask=False, adjust_scaling_factors=False)
    config = LoraConfig(r=3, target_modules="all-linear", init_lora_weights="eva", eva_config=eva)
    model = get_peft_model(models.build("llama"), config, low_cpu_mem_usage=True)
    initialize_lora_eva_weights(model, [batch], show_progress_bar=False)
    theirs = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default"): module.out_features
        for name, module in model.named_modules()
        if name.endswith("lora_A.default")
    }
    mine = {name: rank for name, rank in plan.ranks.items() if rank}
    assert sum(mine.values()) == sum(theirs.values())
    # Targets with one input have equal ratios; which of them gets the odd component is not defined.
    groups = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))

    def by_input(ranks):
        return [
            sum(rank for name, rank in ranks.items() if f"layers.{layer}." in name and name.split(".")[-1] in group)
            for layer in (0, 1)
            for group in groups
        ]

    assert by_input(mine) == by_input(theirs)
