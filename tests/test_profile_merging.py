"""Merging and comparing profiles."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import models
import tailora
from tailora.cli import main
from tailora.errors import UserError
from tailora.profile_merging import agreement, load_with_sums, merge

SIGNALS = (
    "fisher",
    "gradient_spectrum",
    "gradient_cross_spectrum",
    "gradient_norm",
    "sensitivity",
    "explained_variance",
    "output_gradient_spectrum",
    "fisher_lora_b",
    "fisher_batch_b",
    "stable_rank",
)


def measured(model, batches, **how):
    return tailora.profile(model, batches, signals=SIGNALS, keep_sums=True, **how)


def test_a_merged_profile_is_that_of_all_examples(tmp_path):
    model = models.build("llama", dtype=torch.float64)
    batches = models.batches("llama", sizes=(4, 3, 5, 2))
    whole = measured(model, batches)
    parts = [measured(model, batches[:1]), measured(model, batches[1:])]
    for number, part in enumerate(parts):
        part.save(tmp_path / str(number))
    loaded = [load_with_sums(tmp_path / str(number)) for number in range(2)]
    found = merge(loaded, model)
    assert set(found.signals) == set(SIGNALS)
    for name in SIGNALS:
        np.testing.assert_allclose(found.signals[name], whole.signals[name], rtol=1e-8, atol=1e-12)
    assert found.meta["examples"] == 14
    assert found.meta["mean_loss"] == pytest.approx(whole.meta["mean_loss"], rel=1e-12)
    assert found.meta["merged"] == [part.hash for part in parts]
    again = merge([found, measured(model, models.batches("llama", sizes=(3,), seed=4))], model)
    assert again.meta["examples"] == 17
    assert "sensitivity" not in merge(loaded).signals, "without the model its weights cannot be read"


def test_what_does_not_fit_is_refused(tmp_path):
    model = models.build("llama")
    batches = models.batches("llama")
    one = measured(model, batches)
    with pytest.raises(UserError, match="merging needs two profiles or more, not 1"):
        merge([one])
    with pytest.raises(UserError, match="number 2 holds no sums; measure it with keep_sums=True"):
        merge([one, tailora.profile(model, batches, signals=SIGNALS)])
    with pytest.raises(UserError, match="number 2 measures other targets than the first"):
        merge([one, measured(model, batches, placement="attention")])
    with pytest.raises(UserError, match="number 2 and the first differ in the signals .*; measure both alike"):
        merge([one, tailora.profile(model, batches, signals=SIGNALS[:2], keep_sums=True)])
    with pytest.raises(UserError, match="number 2 has seed 1 and the first 0"):
        merge([one, measured(model, batches, seed=1)])
    with pytest.raises(UserError, match="number 2 has model"):
        merge([one, measured(models.build("llama", seed=1), batches)])
    tailora.profile(model, batches).save(tmp_path / "plain")
    with pytest.raises(UserError, match="was saved without its sums"):
        load_with_sums(tmp_path / "plain")


def test_agreement_is_a_rank_correlation_per_signal():
    model = models.build("llama")
    one = measured(model, models.batches("llama"))
    same = agreement(one, one)
    assert set(same) == set(SIGNALS)
    assert same["fisher"] == pytest.approx(1.0)
    other = agreement(one, measured(model, models.batches("llama", seed=9)))
    assert -1 <= other["fisher"] <= 1
    assert other["stable_rank"] == pytest.approx(1.0), "the weights are the same"
    with pytest.raises(UserError, match="the profiles share 0 targets"):
        agreement(one, measured(models.build("bert"), models.batches("bert")))


def test_merge_and_compare_on_the_command_line(tmp_path, capsys):
    model = models.build("llama")
    for number in (0, 1):
        measured(model, models.batches("llama", seed=number)).save(tmp_path / str(number))
    paths = [str(tmp_path / str(number)) for number in (0, 1)]
    with pytest.raises(SystemExit) as ended:
        main(["merge", *paths, "-o", str(tmp_path / "both")])
    assert ended.value.code == 0
    captured = capsys.readouterr()
    assert "from 14 examples (mean loss" in captured.out
    assert "of 2 profiles" in captured.out
    assert "sensitivity cannot be merged and was left out" in captured.err
    assert tailora.Profile.load(tmp_path / "both").meta["examples"] == 14
    with pytest.raises(SystemExit) as ended:
        main(["compare", *paths, "--json"])
    assert ended.value.code == 0
    assert set(json.loads(capsys.readouterr().out)) == set(SIGNALS)
    with pytest.raises(SystemExit) as ended:
        main(["merge", paths[0], "-o", str(tmp_path / "alone")])
    assert ended.value.code == 2


def test_sums_of_an_overwritten_profile_are_not_taken_for_those_of_the_new_one(tmp_path):
    model, (first, second) = models.build("llama"), models.batches("llama")
    measured(model, [first]).save(tmp_path / "p")
    tailora.profile(model, [second], signals=SIGNALS).save(tmp_path / "p")
    with pytest.raises(UserError, match="was saved without its sums"):
        load_with_sums(tmp_path / "p")
    measured(model, [first]).save(tmp_path / "q")
    measured(model, [second]).save(tmp_path / "r")
    (tmp_path / "q" / "sums.safetensors").write_bytes((tmp_path / "r" / "sums.safetensors").read_bytes())
    with pytest.raises(UserError, match="are those of another profile"):
        load_with_sums(tmp_path / "q")
