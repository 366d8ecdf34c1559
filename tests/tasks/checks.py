"""What every task must keep to, checked on one configuration."""

from __future__ import annotations

import pytest
import torch

from tailora.adapters import count_parameters
from tailora.artifacts import read_json
from tailora.config import RunConfig, make_config
from tailora.plans import plan
from tailora.runs import evaluate_adapter, execute
from tailora.tasks.calibration import measure_profile, prepare
from tiny_runs import read_rows


def tiny_config(folder, model, task: dict, **training) -> RunConfig:
    """A run of a few steps."""
    return make_config(
        {
            "model": str(model),
            "task": task,
            "budget": "r=2",
            "calibration": {"examples": 8, "batch_size": 4},
            "training": {
                "learning_rate": 1e-2,
                "max_steps": 12,
                "per_device_train_batch_size": 8,
                "logging_steps": 6,
                "use_cpu": True,
                **training,
            },
            "output": str(folder / "runs"),
        }
    )


def check_contract(config: RunConfig, *, loss: str, head: bool):
    """Profile, plan, head and evaluation keep their promises; returns what was prepared."""
    prepared = prepare(config)
    task, base = prepared.task, prepared.base
    # Measuring compares the chosen loss per example with the model's own loss, and refuses if they differ.
    measured = measure_profile(config)
    assert measured.meta["loss"] == loss
    assert measured.meta["examples"] == 8

    made = plan(measured, "spectral", "r=2", seed=0)
    fresh = base.fresh(1)
    modules = list(fresh.new_modules) or None
    wrapped = made.apply(fresh.model, task_type=task.task_type, modules_to_save=modules, seed=1)
    counts = count_parameters(wrapped)
    assert counts["adapter_params"] == made.total_params
    assert (counts["head_params"] > 0) == head
    if head:
        assert counts["head_params"] == sum(
            p.numel() for name in fresh.new_modules for p in base.model.get_submodule(name).parameters()
        )
        name = fresh.new_modules[-1]
        same, other = base.fresh(1), base.fresh(2)
        weights = [next(one.model.get_submodule(name).parameters()) for one in (same, other)]
        assert torch.equal(weights[0], next(base.fresh(1).model.get_submodule(name).parameters()))
        assert not torch.equal(*weights)

    check_batch_sizes(prepared)
    return prepared


def check_batch_sizes(prepared):
    """No score and no record depends on the batch size."""
    task, base = prepared.task, prepared.base
    base.model.train()
    results = [
        task.evaluate(base.model, base.tokenizer, prepared.evaluation, batch_size=size, labels=prepared.splits.labels)
        for size in (1, 5, 64)
    ]
    assert base.model.training
    assert torch.is_grad_enabled()
    for result in results[1:]:
        assert result.loss == pytest.approx(results[0].loss, rel=1e-5)
        assert [r["index"] for r in result.records] == list(range(len(prepared.evaluation)))
        for mine, theirs in zip(result.records, results[0].records, strict=True):
            assert set(mine) == set(theirs)
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-5)
            same = mine.get("prediction")
            number = isinstance(same, float)
            assert (pytest.approx(same, rel=1e-4, abs=1e-5) if number else same) == theirs.get("prediction")


def check_run(config: RunConfig):
    """A whole run: scores fit records, and the saved adapter scores the same; returns scores and records."""
    folder = execute(config)
    scores, records = read_json(folder / "scores.json"), read_rows(folder / "predictions.jsonl")
    assert len(records) == scores["examples"]
    assert scores["higher_is_better"] == (scores["primary"] != "loss")
    assert isinstance(scores[scores["primary"]], float)
    again = evaluate_adapter(folder)
    assert again["loss"] == pytest.approx(scores["loss"], rel=1e-5)
    assert again[scores["primary"]] == pytest.approx(scores[scores["primary"]], rel=1e-5)
    return scores, records
