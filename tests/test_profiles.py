"""Profiles as files: saved, verified, refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import models
import tailora
from tailora.errors import PlanMismatchError, UserError
from tailora.profiles import Profile


@pytest.fixture(scope="module")
def profile():
    return tailora.profile(models.build("llama"), models.batches("llama"))


def test_round_trip(profile, tmp_path):
    loaded = Profile.load(profile.save(tmp_path / "p"))
    assert loaded.hash == profile.hash
    assert loaded.targets == profile.targets
    assert loaded.meta == profile.meta
    for name, values in profile.signals.items():
        np.testing.assert_array_equal(loaded.signals[name], values)
    assert {f.name for f in (tmp_path / "p").iterdir()} == {"profile.json", "profile.safetensors"}


def test_meta_says_how_it_was_measured(profile):
    meta = profile.meta
    assert (meta["loss"], meta["mode"], meta["examples"], meta["batches"]) == ("causal-lm", "eval", 7, 2)
    assert meta["loss_reduction"] == "mean over an example's own tokens"
    assert len(meta["model"]) == len(meta["data"]) == 64
    assert meta["model_params"] == sum(p.numel() for p in models.build("llama").parameters())
    assert set(meta["versions"]) == {"tailora", "torch", "numpy"}


def test_the_hash_is_of_content_not_of_time(profile):
    again = tailora.profile(models.build("llama"), models.batches("llama"))
    assert again.hash == profile.hash
    other_data = tailora.profile(models.build("llama"), models.batches("llama", seed=9))
    assert other_data.meta["data"] != profile.meta["data"]
    other_model = tailora.profile(models.build("llama", seed=4), models.batches("llama"))
    assert other_model.meta["model"] != profile.meta["model"]
    assert len({profile.hash, other_data.hash, other_model.hash}) == 3


def test_one_profile_serves_many_plans_without_the_model(profile, tmp_path):
    loaded = Profile.load(profile.save(tmp_path / "p"))
    hashes = {
        tailora.plan(loaded, recipe=r, budget=b).hash for r in ("lora", "fim-lora", "spectral") for b in ("r=2", "20%")
    }
    assert len(hashes) == 6


def test_scalar_of_a_spectrum_is_its_energy(profile):
    energy = profile.scalar("gradient_spectrum")
    first = profile.targets[0].name
    assert energy[first] == pytest.approx((profile.signals["gradient_spectrum"][0] ** 2).sum())
    with pytest.raises(UserError, match="holds fisher, gradient_spectrum, not 'weights'"):
        profile.scalar("weights")


def test_check_refuses_other_models(profile):
    profile.check(models.build("llama"))
    with pytest.raises(PlanMismatchError, match="weights are not those"):
        profile.check(models.build("llama", seed=3))
    with pytest.raises(PlanMismatchError, match="differs in this model"):
        profile.check(models.build("gpt2"))


def test_damaged_profiles_are_refused(profile, tmp_path):
    folder = profile.save(tmp_path / "p")
    data = json.loads((folder / "profile.json").read_text())
    with pytest.raises(UserError, match=r"holds no profile \(profile.json is missing\)"):
        Profile.load(tmp_path)
    (folder / "profile.json").write_text(json.dumps({**data, "meta": {**data["meta"], "examples": 8}}))
    with pytest.raises(UserError, match="was changed after it was made"):
        Profile.load(folder)
    (folder / "profile.json").write_text(json.dumps({**data, "format": "other"}))
    with pytest.raises(UserError, match="not a profile of format"):
        Profile.load(folder)
    (folder / "profile.json").write_text(json.dumps(data))
    (folder / "profile.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="is damaged"):
        Profile.load(folder)


def test_real_model_fisher_of_trained_weights(stories260k, data_root):
    """The Fisher of the real Llama: larger on text it does not know than on text it was trained on."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(stories260k)
    tokenizer = AutoTokenizer.from_pretrained(stories260k)

    def batches(texts):
        encoded = [tokenizer(text, truncation=True, max_length=64, return_tensors="pt")["input_ids"] for text in texts]
        return [{"input_ids": ids, "labels": ids} for ids in encoded]

    stories = json.loads((data_root / "text" / "tinystories_1000.json").read_text())[:12]
    stories = [story if isinstance(story, str) else next(iter(story.values())) for story in stories]
    plays = (data_root / "text" / "tinyshakespeare.txt").read_text().split("\n\n")[:12]
    known, unknown = (tailora.profile(model, batches(texts)) for texts in (stories, plays))
    assert known.meta["mean_loss"] < 2.0 < 4.0 < unknown.meta["mean_loss"]
    assert known.signals["fisher"].sum() < unknown.signals["fisher"].sum()
    assert len(known.targets) == 35
    assert torch.get_default_dtype() == torch.float32
