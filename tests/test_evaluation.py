"""Scores against obvious float64 sums, and what must not change them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tailora.errors import DataError
from tailora.evaluation import classify, evaluating, predict_tokens, tag, with_texts
from tailora.evaluation.base import SHOWN, cut_text


class Table(nn.Module):
    """A model whose logits are looked up per token; classification reads the first token."""

    def __init__(self, size=7, classes=7, per_token=True):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(size, classes, generator=generator) * 3)
        self.dropout = nn.Dropout(0.5)
        self.per_token = per_token

    def forward(self, input_ids, attention_mask=None):
        logits = self.dropout(self.table[input_ids])
        return SimpleNamespace(logits=logits if self.per_token else logits[:, 0])


def slow_loss(logits, label):
    logits = logits.detach().double()
    return float(torch.logsumexp(logits, 0) - logits[label])


def test_classification_against_a_plain_loop():
    model = Table(classes=3, per_token=False).train()
    ids, labels = torch.tensor([[0], [1], [2], [3], [4]]), torch.tensor([0, 1, 2, 0, 1])
    batches = [{"input_ids": ids[:3], "labels": labels[:3]}, {"input_ids": ids[3:], "labels": labels[3:]}]
    result = classify(model, batches, order=[4, 0, 1, 2, 3], names=["a", "b", "c"])
    losses = [slow_loss(model.table[i], label) for i, label in zip(ids[:, 0], labels, strict=True)]
    right = [bool(model.table[i].argmax() == label) for i, label in zip(ids[:, 0], labels, strict=True)]
    assert result.loss == pytest.approx(sum(losses) / 5, rel=1e-6)
    assert result.accuracy == sum(right) / 5
    assert [record["index"] for record in result.records] == [0, 1, 2, 3, 4]
    assert result.records[4]["loss"] == pytest.approx(losses[0], rel=1e-6)
    assert result.records[4]["label"] == "a"
    assert all(record["correct"] == (record["label"] == record["prediction"]) for record in result.records)
    assert result.scores() == {
        "primary": "accuracy",
        "higher_is_better": True,
        "loss": result.loss,
        "examples": 5,
        "accuracy": result.accuracy,
        "f1": result.metrics["f1"],
        "matthews": result.metrics["matthews"],
    }


def lm_batches(size, width=6):
    generator = torch.Generator().manual_seed(1)
    examples = [torch.randint(0, 7, (2 + n % (width - 1),), generator=generator) for n in range(11)]
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        length = max(len(e) for e in part)
        ids = torch.zeros(len(part), length, dtype=torch.long)
        labels = torch.full((len(part), length), -100)
        for row, example in enumerate(part):
            ids[row, : len(example)] = example
            labels[row, : len(example)] = example
        yield {"input_ids": ids, "labels": labels}


def test_language_model_against_a_plain_loop():
    model = Table()
    result = predict_tokens(model, lm_batches(11))
    total, count = 0.0, 0
    for row, (ids, labels) in enumerate(zip(*next(iter(lm_batches(11))).values(), strict=True)):
        losses = [slow_loss(model.table[ids[t]], labels[t + 1]) for t in range(len(ids) - 1) if labels[t + 1] >= 0]
        assert result.records[row]["tokens"] == len(losses)
        assert result.records[row]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
        total, count = total + sum(losses), count + len(losses)
    assert result.loss == pytest.approx(total / count, rel=1e-6)
    assert result.tokens == count
    assert result.perplexity == math.exp(result.loss)
    assert result.scores()["perplexity"] == math.exp(result.scores()["loss"])
    assert result.accuracy is None


@pytest.mark.parametrize("size", [1, 2, 5])
def test_batch_size_does_not_matter(size):
    whole, split = predict_tokens(Table(), lm_batches(11)), predict_tokens(Table(), lm_batches(size))
    assert split.loss == pytest.approx(whole.loss, rel=1e-6)
    assert [r["index"] for r in split.records] == [r["index"] for r in whole.records]


def test_weighting_is_by_token_and_not_by_example():
    result = predict_tokens(Table(), lm_batches(11))
    by_example = sum(record["loss"] for record in result.records) / len(result.records)
    assert result.loss != pytest.approx(by_example, rel=1e-4)


def test_low_precision_logits_are_scored_in_float32():
    model = Table().to(torch.bfloat16)
    result = predict_tokens(model, lm_batches(4))
    assert result.loss == pytest.approx(predict_tokens(model.float(), lm_batches(4)).loss, rel=1e-6)


def test_modes_and_gradients_are_left_alone():
    model = nn.Sequential(Table(), nn.Dropout()).train()
    model[1].eval()
    with evaluating(model):
        assert not model[0].training
        assert not torch.is_grad_enabled()
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert torch.is_grad_enabled()
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert model.training


def test_nothing_to_score():
    with pytest.raises(DataError, match="no evaluation example"):
        classify(Table(), [])
    batch = {"input_ids": torch.zeros(1, 3, dtype=torch.long), "labels": torch.full((1, 3), -100)}
    with pytest.raises(DataError, match="example 0 has no token"):
        predict_tokens(Table(), [batch])


def test_enormous_loss_has_no_perplexity():
    model = Table()
    with torch.no_grad():
        model.table.mul_(1e4)
    assert predict_tokens(model, lm_batches(4)).perplexity is None


def test_records_gain_the_text_of_their_example():
    records = [{"index": 0, "loss": 1.0}, {"index": 1, "loss": 2.0}]
    found = with_texts(records, ["a  b\nc", "x" * 1000])
    assert found[0] == {"index": 0, "loss": 1.0, "text": "a b c"}
    assert (len(found[1]["text"]), found[1]["text"][-2:]) == (SHOWN, "x…")
    assert with_texts(records, None) == records
    assert cut_text("word " * 40, SHOWN) == ("word " * 40).strip()
    assert cut_text(" " * 5000 + "late", 10).endswith("…")


def tagging(names):
    model = Table(classes=len(names))
    batch = {"input_ids": torch.tensor([[0, 1, 2, 3]]), "labels": torch.tensor([[0, 1, 2, -100]])}
    return tag(model, [batch], names=names)


def test_entities_are_scored_where_the_tags_name_them():
    result = tagging(["O", "B-PER", "I-PER"])
    (record,) = result.records
    from tailora.evaluation.entities import entity_f1

    assert result.metrics["entity_f1"] == entity_f1([(record["label"], record["prediction"])])
    assert "entity_f1" not in tagging(["O", "PER", "LOC"]).metrics
