"""Regression and the metrics of text classification."""

from __future__ import annotations

import json
import random

import pytest
import torch
from checks import check_contract, check_run, tiny_config

from tailora.config import TaskConfig
from tailora.errors import ConfigError, DataError
from tailora.tasks import TASKS
from tailora.tasks.calibration import prepare
from tiny_runs import merged, review_config, save_bert


def save_scores(folder, *, rows=64, seed=0):
    """Pairs of texts whose score is 4 where the first begins well and 1 where it does not."""
    path, draw = folder / f"scores{seed}.jsonl", random.Random(seed)
    lines = []
    for number in range(rows):
        words = " ".join(f"w{draw.randrange(40)}" for _ in range(draw.randrange(1, 6)))
        row = {"a": ("bad " if number % 2 else "good ") + words, "b": "w1 w2", "score": 1 if number % 2 else 4.0}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path):
    task = {
        "kind": "regression",
        "train": str(save_scores(tmp_path)),
        "evaluation": str(save_scores(tmp_path, rows=20, seed=1)),
        "text": "a",
        "text_pair": "b",
        "label": "score",
    }
    return tiny_config(tmp_path, save_bert(tmp_path / "bert"), task, max_steps=40)


def test_contract(config):
    prepared = check_contract(config, loss="regression", head=True)
    assert prepared.base.model.config.problem_type == "regression"
    batch = prepared.task.collate(prepared.training[:3], prepared.base.tokenizer)
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [4, 1, 4]
    assert prepared.base.model(**batch).logits.shape == (3, 1)


def test_a_run_learns_the_scores(config):
    scores, records = check_run(config)
    assert (scores["primary"], set(scores)) == (
        "pearson",
        {"primary", "higher_is_better", "loss", "examples", "pearson", "spearman"},
    )
    assert scores["pearson"] > 0.6
    assert scores["loss"] == pytest.approx(sum((r["prediction"] - r["label"]) ** 2 for r in records) / len(records))


def test_a_new_head_starts_at_the_mean_score(config):
    prepared = prepare(config)
    for seed in (0, 1):
        model = prepared.base.fresh(seed).model
        assert model.classifier.bias.tolist() == [2.5]
    # What the profile is measured on starts there too, or the mean gradient would be that of the offset.
    torch.manual_seed(0)
    inputs = prepared.task.collate(prepared.training[:3], prepared.base.tokenizer)
    first = prepared.base.fresh(0).model.eval()(**inputs).logits
    assert (first - 2.5).abs().max() < 0.5


def test_a_head_of_the_checkpoint_stays_as_it_is(config, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(config.model, num_labels=1)
    with torch.no_grad():
        model.classifier.bias.fill_(-7.0)
    model.save_pretrained(tmp_path / "scored")
    AutoTokenizer.from_pretrained(config.model).save_pretrained(tmp_path / "scored")
    prepared = prepare(config.model_copy(update={"model": str(tmp_path / "scored")}))
    assert prepared.base.fresh(0).model.classifier.bias.tolist() == [-7.0]


@pytest.mark.parametrize("value", ["high", None, "", float("nan"), float("inf"), True, [1.0]])
def test_scores_that_are_no_numbers(config, tmp_path, value):
    path = tmp_path / "bad.jsonl"
    row = {"a": "w1", "b": "w2"}
    path.write_text("".join(json.dumps(row | {"score": s}) + "\n" for s in (1.0, value)), encoding="utf-8")
    task = config.task.model_copy(update={"train": str(path)})
    with pytest.raises(DataError, match="column 'score', row 2 has .* a finite number is expected"):
        TASKS["regression"].read(task)


def test_one_score_only(config, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text('{"a": "w1", "b": "w2", "score": 3}\n' * 4, encoding="utf-8")
    with pytest.raises(DataError, match="holds only the score 3"):
        TASKS["regression"].read(config.task.model_copy(update={"train": str(path)}))


def test_metric_chooses_the_primary_score(tmp_path):
    config = review_config(tmp_path, task={"metric": "matthews"}, training={"eval_steps": None})
    scores, _ = check_run(config)
    assert (scores["primary"], scores["higher_is_better"]) == ("matthews", True)
    assert {"accuracy", "f1", "matthews"} <= set(scores)
    by_loss = prepare(review_config(tmp_path, task={"metric": "loss"})).task
    assert (by_loss.primary, by_loss.higher_is_better) == ("loss", False)
    assert TASKS["text-classification"].primary == "accuracy"


def test_unknown_metrics(tmp_path):
    with pytest.raises(ConfigError, match=r"task.metric='mathews' is no score of text-classification; did you mean"):
        prepare(review_config(tmp_path, task={"metric": "mathews"}))
    with pytest.raises(ConfigError, match="known: loss"):
        TASKS["causal-lm"].bound(TaskConfig(kind="causal-lm", train="x.txt", metric="accuracy"))


def glue(tmp_path, minilm, task, **training):
    training = {"per_device_eval_batch_size": 64, "learning_rate": 2e-3} | training
    return tiny_config(tmp_path, minilm, merged({"max_length": 48}, task), **training)


def stsb(data_root):
    return {
        "kind": "regression",
        "train": str(data_root / "glue/STS-B/train.tsv"),
        "evaluation": str(data_root / "glue/STS-B/dev.tsv"),
        "text": "sentence1",
        "text_pair": "sentence2",
        "label": "score",
    }


def cola(data_root):
    return {
        "kind": "text-classification",
        "train": str(data_root / "glue/CoLA/train.tsv"),
        "evaluation": str(data_root / "glue/CoLA/dev.tsv"),
        "header": False,
        "text": 3,
        "label": 1,
        "metric": "matthews",
    }


def test_stsb_quickly(tmp_path, minilm, data_root):
    task = stsb(data_root) | {"train_examples": 64, "eval_examples": 48, "max_length": 24}
    scores, records = check_run(glue(tmp_path, minilm, task, max_steps=4))
    assert scores["primary"] == "pearson"
    assert all(0 <= record["label"] <= 5 for record in records)


def test_cola_quickly(tmp_path, minilm, data_root):
    task = cola(data_root) | {"train_examples": 64, "eval_examples": 48, "max_length": 24}
    scores, records = check_run(glue(tmp_path, minilm, task, max_steps=4))
    assert scores["primary"] == "matthews"
    assert {record["label"] for record in records} == {"0", "1"}


@pytest.mark.slow
def test_cola_in_150_steps(tmp_path, minilm, data_root):
    scores, _ = check_run(glue(tmp_path, minilm, cola(data_root), max_steps=150, per_device_train_batch_size=16))
    # In so few steps MiniLM stays at the majority class: only the loss shows that it learns.
    assert scores["loss"] < 0.66


@pytest.mark.slow
def test_stsb_in_100_steps(tmp_path, minilm, data_root):
    training = {"max_steps": 100, "per_device_train_batch_size": 16, "learning_rate": 1e-3}
    scores, _ = check_run(glue(tmp_path, minilm, stsb(data_root) | {"eval_examples": 500}, **training))
    # From a head that starts at 0, its Pearson correlation is 0.2 after twice as many steps.
    assert scores["pearson"] > 0.7
