"""Sequence to sequence on a small T5 with random weights."""

from __future__ import annotations

import json
import random

import pytest
import torch
import transformers as tf
from checks import check_contract, check_run, tiny_config

from tailora.config import TaskConfig
from tailora.errors import ConfigError, DataError
from tailora.evaluation.metrics import rouge_l
from tailora.tasks import TASKS, seq2seq
from tiny_runs import WORDS, tokenizer

TASK = TASKS["seq2seq"]


def save_t5(folder, words=None):
    words = words or tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = tf.T5Config(
            vocab_size=len(words),
            d_model=32,
            d_kv=16,
            d_ff=48,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=words.pad_token_id,
            pad_token_id=words.pad_token_id,
            eos_token_id=words.eos_token_id,
        )
        tf.T5ForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def echoes(folder, *, rows=64, seed=0):
    """The judgement is repeated."""
    draw = random.Random(seed)
    path = folder / f"echoes{seed}.jsonl"
    lines = []
    for _ in range(rows):
        word = draw.choice(["good", "bad"])
        lines.append(json.dumps({"text": f"{word} w{draw.randrange(9)}", "out": f"{word} {word}"}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def config(tmp_path):
    task = {
        "kind": "seq2seq",
        "train": echoes(tmp_path),
        "evaluation": echoes(tmp_path, rows=12, seed=1),
        "text_pair": "out",
        "max_length": 12,
    }
    return tiny_config(tmp_path, save_t5(tmp_path / "t5"), task, max_steps=16)


def test_contract(config):
    prepared = check_contract(config, loss="token", head=False)
    batch = prepared.task.collate(prepared.training[:3], prepared.base.tokenizer)
    assert batch["labels"].shape == (3, 2)
    assert prepared.base.model(**batch).logits.shape == (3, 2, len(WORDS))


def test_a_run(config):
    scores, records = check_run(config)
    assert (scores["primary"], scores["higher_is_better"]) == ("loss", False)
    assert scores["perplexity"] == pytest.approx(torch.tensor(scores["loss"]).double().exp().item())
    assert scores["tokens"] == sum(record["tokens"] for record in records) == 2 * 12
    matches = [record["label"] == record["prediction"] for record in records]
    assert scores["exact_match"] == sum(matches) / len(matches)
    assert scores["rouge_l"] == pytest.approx(sum(rouge_l(r["label"], r["prediction"]) for r in records) / 12)


def test_loss_against_the_models_own(config):
    prepared = TASK.read(config.task), TASK.load(config, TASK.read(config.task))
    splits, base = prepared
    _, examples = TASK.encode(config.task, splits, base.tokenizer)
    result = TASK.evaluate(base.model, base.tokenizer, examples, batch_size=5)
    with torch.no_grad():
        own = base.model.eval()(**TASK.collate(examples, base.tokenizer)).loss
    assert result.loss == pytest.approx(float(own), rel=1e-5)


def test_text_is_written_for_a_capped_number_of_examples(config, monkeypatch):
    monkeypatch.setattr(seq2seq, "WRITTEN", 5)
    splits = TASK.read(config.task)
    base = TASK.load(config, splits)
    _, examples = TASK.encode(config.task, splits, base.tokenizer)
    task = TASK.bound(config.task.model_copy(update={"metric": "rouge_l"}))
    result = task.evaluate(base.model, base.tokenizer, examples, batch_size=4)
    assert result.scores()["primary"] == "rouge_l"
    written = [record for record in result.records if "prediction" in record]
    assert len(written) == 5 < result.examples
    assert result.metrics["rouge_l"] == pytest.approx(sum(record["score"] for record in written) / 5)


def test_what_cannot_be_used(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "w1", "out": " "}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="task.text_pair is missing"):
        TASK.read(TaskConfig(kind="seq2seq", train=str(path), evaluation=str(path)))
    with pytest.raises(DataError, match="column 'out', row 1 is empty"):
        TASK.read(TaskConfig(kind="seq2seq", train=str(path), evaluation=str(path), text_pair="out"))


def test_a_real_tokenizer_and_real_text(tmp_path, stories260k, data_root):
    words = tf.AutoTokenizer.from_pretrained(stories260k)
    words.pad_token = words.pad_token or words.eos_token
    rows = json.loads((data_root / "instruction" / "rasbt_instruction.json").read_text(encoding="utf-8"))[:60]
    path = tmp_path / "instructions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    task = {"kind": "seq2seq", "train": str(path), "text": "instruction", "text_pair": "output", "max_length": 32}
    scores, _ = check_run(tiny_config(tmp_path, save_t5(tmp_path / "t5", words), task, max_steps=4))
    assert 0 <= scores["rouge_l"] <= 1
