"""Whole runs: what the folder holds, what is cached, what survives a kill, and what real data gives."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import forked
import tailora.profiles
from tailora.config import make_config
from tailora.errors import ConfigError, TailoraError, TrainingError, UserError
from tailora.plans import Plan
from tailora.runs import evaluate_adapter, execute, is_done, load_base, measure_profile, run_folder
from tiny_runs import read_rows, review_config, text_config

FILES = {
    "adapter",
    "config.json",
    "counts.json",
    "environment.json",
    "history.jsonl",
    "plan.json",
    "predictions.jsonl",
    "scores.json",
    "signals.json",
    "status.json",
    "timings.json",
}


def load(folder, name):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def review_run(tmp_path_factory):
    config = review_config(tmp_path_factory.mktemp("reviews"), recipe="spectral")
    return config, execute(config)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    config = text_config(tmp_path_factory.mktemp("texts"), recipe="fim-lora")
    return config, execute(config)


def test_folder_holds_exactly_the_files(review_run, text_run):
    for config, folder in (review_run, text_run):
        assert {path.name for path in folder.iterdir()} == FILES
        assert folder == run_folder(config)
        assert folder.name == f"{config.recipe}-s0-{config.hash[:12]}"
        assert is_done(config)
        status = load(folder, "status")
        assert (status["status"], status["error"], status["hash"]) == ("done", None, config.hash)
        stored = load(folder, "config")
        assert stored["recipe"] == config.recipe
        assert stored["task"]["kind"] == config.task.kind
        assert stored["training"]["learning_rate"] == 1e-2
        assert set(load(folder, "timings")) >= {"profile_s", "plan_s", "train_s", "evaluate_s", "total_s"}


def test_numbers_agree_with_each_other(review_run, text_run):
    for _, folder in (review_run, text_run):
        plan, counts, scores = Plan.load(folder / "plan.json"), load(folder, "counts"), load(folder, "scores")
        assert counts["adapter_params"] == plan.total_params <= plan.budget_params
        assert plan.model_params == counts["base_params"] + counts["head_params"]
        records, history = read_rows(folder / "predictions.jsonl"), read_rows(folder / "history.jsonl")
        assert len(records) == scores["examples"]
        assert history[-1]["split"] == "eval"
        assert history[-1]["loss"] == scores["loss"]
        names = set(plan.ranks)
        for values in load(folder, "signals").values():
            assert set(values) == names
            assert all(value >= 0 for value in values.values())


def test_what_a_recipe_reads_is_kept_with_what_is_always_measured(tmp_path, review_run):
    assert set(load(review_run[1], "signals")) == {"fisher", "gradient_spectrum"}
    signals = load(execute(review_config(tmp_path, recipe="newton")), "signals")
    assert set(signals) == {"fisher", "gradient_spectrum", "newton_spectrum", "newton_agreement"}
    assert len(set(signals["newton_agreement"].values())) == 1
    assert len(set(signals["newton_spectrum"].values())) > 1


def test_a_signal_that_the_allocation_overrides_is_the_one_that_is_measured(tmp_path):
    other = {"signal": "gradient_cross_spectrum"}
    folder = execute(review_config(tmp_path, recipe="spectral", allocation=other))
    assert set(load(folder, "signals")) == {"fisher", "gradient_spectrum", "gradient_cross_spectrum"}
    assert load(folder, "plan")["recipe"]["allocation"]["options"] == other


def test_classification_scores(review_run):
    _, folder = review_run
    scores, records = load(folder, "scores"), read_rows(folder / "predictions.jsonl")
    assert (scores["primary"], scores["higher_is_better"]) == ("accuracy", True)
    assert scores["accuracy"] == sum(r["correct"] for r in records) / len(records)
    assert scores["loss"] == pytest.approx(sum(r["loss"] for r in records) / len(records))
    assert {r["label"] for r in records} == {"neg", "pos"}
    assert load(folder, "counts")["head_params"] == 2 * 32 + 2


def test_language_scores(text_run):
    _, folder = text_run
    scores, records = load(folder, "scores"), read_rows(folder / "predictions.jsonl")
    assert (scores["primary"], scores["higher_is_better"]) == ("loss", False)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert scores["tokens"] == sum(r["tokens"] for r in records)
    assert load(folder, "counts")["head_params"] == 0


def test_finished_run_is_returned_at_once(review_run):
    config, folder = review_run
    before = (folder / "status.json").stat().st_mtime_ns
    assert execute(config, progress=lambda *_: pytest.fail("it worked again")) == folder
    assert (folder / "status.json").stat().st_mtime_ns == before


def test_saved_adapter_scores_the_same_and_loads_with_stock_peft(review_run, text_run):
    for _, folder in (review_run, text_run):
        scores = evaluate_adapter(folder)
        assert scores["loss"] == pytest.approx(load(folder, "scores")["loss"], rel=1e-5)
    config, folder = review_run
    base = AutoModelForSequenceClassification.from_pretrained(config.model, num_labels=2)
    model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    again = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(config.model, num_labels=2), folder / "adapter"
    ).eval()
    ids = torch.tensor([[5, 9, 11]])
    assert torch.equal(model(ids).logits, again(ids).logits)
    with pytest.raises(UserError, match="holds no adapter_config"):
        evaluate_adapter(folder.parent)


def test_profile_is_shared_between_seeds_and_recipes(review_run, monkeypatch):
    config, _ = review_run
    monkeypatch.setattr(tailora.profiles, "profile", lambda *a, **k: pytest.fail("measured again"))
    before = sorted((Path(config.output) / "profiles").iterdir())
    short = config.training.model_copy(update={"max_steps": 1, "eval_steps": None})
    execute(config.model_copy(update={"seed": 1, "recipe": "lora", "training": short}))
    assert sorted((Path(config.output) / "profiles").iterdir()) == before
    assert len(before) == 1


def test_profile_without_a_run(tmp_path):
    config = review_config(tmp_path, placement="role:attention.query")
    told = []
    profile = measure_profile(config, ("fisher",), progress=lambda *step: told.append(step))
    assert {target.role for target in profile.targets} == {"attention.query"}
    assert set(profile.signals) == {"fisher"}
    assert told[-1] == ("profile", 8, 8)
    assert not (tmp_path / "runs").exists()


def test_shared_base_gives_the_same_run_and_stays_untouched(tmp_path):
    config = review_config(tmp_path, training={"max_steps": 4, "eval_steps": None})
    base = load_base(config)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    with_base = load(execute(config, base=base), "scores")
    after = base.model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    alone = load(execute(config.model_copy(update={"output": str(tmp_path / "other")})), "scores")
    assert with_base == alone


@pytest.mark.parametrize("recipe", ["lora-plus", "dora", "rslora", "ffn-only"])
def test_recipes_run(tmp_path, recipe):
    config = review_config(tmp_path, recipe=recipe, training={"max_steps": 2, "eval_steps": None})
    folder = execute(config)
    assert load(folder, "counts")["adapter_params"] == load(folder, "plan")["total_params"]
    assert evaluate_adapter(folder)["loss"] == pytest.approx(load(folder, "scores")["loss"], rel=1e-5)


def test_failure_is_recorded_and_can_be_repeated(tmp_path, monkeypatch):
    config = review_config(tmp_path)
    import tailora.runs

    def diverge(*args, **kwargs):
        raise TrainingError("the training loss became nan at step 3; lower it")

    monkeypatch.setattr(tailora.runs, "train", diverge)
    with pytest.raises(TrainingError):
        execute(config)
    status = load(run_folder(config), "status")
    assert (status["status"], status["error"]) == ("failed", "the training loss became nan at step 3; lower it")
    assert not is_done(config)
    monkeypatch.undo()
    assert is_done(config) is False
    execute(config)
    assert is_done(config)


def test_missing_model_is_the_users_error(tmp_path):
    config = review_config(tmp_path).model_copy(update={"model": str(tmp_path / "absent")})
    with pytest.raises(ConfigError, match="does not exist"):
        execute(config)


CHILD = """
import json, os, signal, sys
from tailora.config import make_config
from tailora.runs import execute
config = make_config(json.load(open(sys.argv[1])))
def kill(stage, done, total):
    if stage == "train" and done == int(sys.argv[2]):
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
execute(config, progress=kill)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_killed_run_continues_with_its_plan_and_ends_the_same(tmp_path, how):
    config = text_config(tmp_path, recipe="spectral", training={"max_steps": 24, "eval_steps": 6, "save_steps": 5})
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps(config.to_dict()), encoding="utf-8")
    status = forked.execute(CHILD, stored, "17", how)
    folder = run_folder(config)
    if how == "SIGKILL":
        assert status == -signal.SIGKILL
        assert not (folder / "status.json").exists()
    else:
        assert status > 0
        assert load(folder, "status")["status"] == "interrupted"
    planned = (folder / "plan.json").read_bytes()
    assert execute(config) == folder
    assert (folder / "plan.json").read_bytes() == planned
    assert {path.name for path in folder.iterdir()} == FILES
    # A signal leaves a checkpoint of the step at hand; a kill leaves the last one.
    assert load(folder, "timings")["resumed_from_step"] == (15 if how == "SIGKILL" else 17)
    whole = execute(config.model_copy(update={"output": str(tmp_path / "whole")}))
    assert load(folder, "scores")["loss"] == pytest.approx(load(whole, "scores")["loss"], rel=1e-5)
    rows, expected = (read_rows(place / "history.jsonl") for place in (folder, whole))
    assert [(r["step"], r["split"]) for r in rows] == [(r["step"], r["split"]) for r in expected]


def test_a_run_that_ends_while_it_is_scored_does_not_train_on(tmp_path):
    """The Trainer takes one more step from the checkpoint of the last one."""
    config = text_config(tmp_path, training={"max_steps": 6, "lr_scheduler_type": "constant", "save_steps": 3})

    def stop(stage, done, total):
        if stage == "evaluate":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(config, progress=stop)
    folder = execute(config)
    whole = execute(config.model_copy(update={"output": str(tmp_path / "whole")}))
    assert load(folder, "timings")["resumed_from_step"] == 6
    assert load(folder, "scores") == load(whole, "scores")
    assert read_rows(folder / "history.jsonl") == read_rows(whole / "history.jsonl")


def test_early_stopping_in_a_run_uses_training_examples_alone(tmp_path):
    settings = {"max_steps": 12, "eval_steps": 2, "early_stopping_patience": 1, "early_stopping_threshold": 9.0}
    config = review_config(tmp_path, training={**settings, "load_best_model_at_end": True})
    folder = execute(config)
    # Nothing improves by 9, so the second validation ends it and the first one's adapter is kept.
    assert (load(folder, "timings")["steps"], load(folder, "timings")["best_step"]) == (4, 2)
    rows = read_rows(folder / "history.jsonl")
    assert [row["step"] for row in rows if row["split"] == "validation"] == [2, 4]
    assert rows[-1]["loss"] == load(folder, "scores")["loss"]
    assert load(folder, "scores")["examples"] == 40
    assert evaluate_adapter(folder)["loss"] == pytest.approx(load(folder, "scores")["loss"], rel=1e-5)
    assert {path.name for path in folder.iterdir()} == FILES


def test_push_to_hub(tmp_path, monkeypatch):
    pushed = []

    def push(self, name, **keywords):
        if len(pushed) == 1:
            raise OSError("401 Client Error:\nUnauthorized")
        pushed.append((type(self).__name__, name, keywords))

    hub = {"push_to_hub": True, "hub_model_id": "me/it", "hub_private_repo": True}
    config = text_config(tmp_path, training={"max_steps": 1, "eval_steps": None, **hub})
    assert config.hash == text_config(tmp_path, training={"max_steps": 1, "eval_steps": None}).hash
    monkeypatch.setattr(PeftModel, "push_to_hub", push)
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.push_to_hub", push)
    with pytest.raises(TailoraError, match=r"hub_model_id='me/it' failed .*401 Client Error: Unauthorized.*log in"):
        execute(config)
    assert load(run_folder(config), "status")["status"] == "failed"
    pushed[:] = [0, 0]
    execute(config)
    assert is_done(config)
    assert [entry[1:] for entry in pushed[2:]] == [("me/it", {"private": True})] * 2
    assert pushed[2][0].startswith("PeftModel")


def test_settings_that_cannot_be_met_are_refused_before_any_work(tmp_path):
    config = review_config(tmp_path, recipe="lora-plus", training={"optim": "sgd", "max_steps": 1})
    with pytest.raises(UserError, match="training.optim='sgd' cannot be used: the method 'lora-plus' brings its own"):
        execute(config)
    config = review_config(tmp_path, training={"report_to": ["swanlab"]})
    with pytest.raises(UserError, match="report_to='swanlab' needs the package 'swanlab', which is not installed"):
        execute(config, progress=lambda *_: pytest.fail("it began to work"))


def stories_config(stories260k, data_root, out, **training):
    return make_config(
        {
            "model": str(stories260k),
            "task": {"kind": "causal-lm", "train": str(data_root / "text" / "tinyshakespeare.txt"), "max_length": 128,
                     "train_examples": 2400, "eval_examples": 64},
            "recipe": "spectral",
            "budget": "r=2",
            "training": {"learning_rate": 1e-2, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, **training},
            "output": str(out),
        }
    )  # fmt: skip


def sst2_config(minilm, data_root, out, **training):
    folder = data_root / "glue" / "SST-2"
    return make_config(
        {
            "model": str(minilm),
            "task": {"kind": "text-classification", "train": str(folder / "train.tsv"),
                     "evaluation": str(folder / "dev.tsv"), "text": "sentence", "max_length": 64,
                     "train_examples": 6000, "eval_examples": None if training["max_steps"] > 50 else 64},
            "recipe": "spectral",
            "budget": "r=1",
            "calibration": {"examples": 16},
            "training": {"learning_rate": 2e-3, **training},
            "output": str(out),
        }
    )  # fmt: skip


def test_real_language_model_learns_quickly(stories260k, data_root, tmp_path):
    config = stories_config(stories260k, data_root, tmp_path, max_steps=16)
    few = make_config(config.to_dict() | {"calibration": {"examples": 8}})
    # 4.73 before training.
    assert load(execute(few), "scores")["loss"] < 4.2


def test_real_encoder_runs(minilm, data_root, tmp_path):
    folder = execute(sst2_config(minilm, data_root, tmp_path, max_steps=2, per_device_train_batch_size=8))
    assert load(folder, "counts")["adapter_params"] == load(folder, "plan")["total_params"]
    assert math.isfinite(load(folder, "scores")["loss"])


@pytest.mark.slow
def test_real_language_model_adapts(stories260k, data_root, tmp_path):
    config = stories_config(stories260k, data_root, tmp_path, max_steps=300)
    # 4.73 before training; uniform rank 2 reaches about 2.8.
    assert load(execute(config), "scores")["loss"] < 2.95


@pytest.mark.slow
def test_real_encoder_beats_the_majority(minilm, data_root, tmp_path):
    config = sst2_config(minilm, data_root, tmp_path, max_steps=200)
    # Always answering "positive" gives 0.509.
    assert load(execute(config), "scores")["accuracy"] > 0.76
