"""Token classification: where tags go, and what is scored."""

from __future__ import annotations

import json
import random
import re

import pytest
from checks import check_contract, check_run, tiny_config

from tailora.config import TaskConfig
from tailora.errors import DataError
from tailora.tasks import TASKS
from tiny_runs import save_bert, tokenizer

TASK = TASKS["token-classification"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def tagged(folder, *, rows=64, seed=0):
    """Words of judgement carry a tag, all others none."""
    draw = random.Random(seed)
    made = []
    for _ in range(rows):
        words = [draw.choice(["good", "bad", "w1", "w2", "w3", "w4"]) for _ in range(draw.randrange(2, 9))]
        made.append({"tokens": words, "tags": [{"good": "POS", "bad": "NEG"}.get(word, "O") for word in words]})
    return write(folder / f"tagged{seed}.jsonl", made)


@pytest.fixture
def config(tmp_path):
    task = {
        "kind": "token-classification",
        "train": tagged(tmp_path),
        "evaluation": tagged(tmp_path, rows=20, seed=1),
        "text": "tokens",
        "label": "tags",
    }
    return tiny_config(tmp_path, save_bert(tmp_path / "bert"), task, max_steps=40)


def test_contract(config):
    prepared = check_contract(config, loss="token", head=True)
    assert prepared.splits.labels is not None
    assert prepared.splits.labels.names == ("NEG", "O", "POS")
    batch = prepared.task.collate(prepared.training[:4], prepared.base.tokenizer)
    assert batch["labels"].shape == batch["input_ids"].shape
    assert (batch["labels"] == -100).equal(batch["attention_mask"] == 0)


def test_a_run_learns_the_tags(config):
    scores, records = check_run(config)
    assert scores["primary"] == "f1"
    assert scores["f1"] > 0.9
    pairs = [pair for record in records for pair in zip(record["label"], record["prediction"], strict=True)]
    hits = sum(a == b != "O" for a, b in pairs)
    total = sum(a != "O" for a, _ in pairs) + sum(b != "O" for _, b in pairs)
    assert scores["f1"] == pytest.approx(2 * hits / total)
    assert scores["accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    tokens = sum(record["tokens"] for record in records)
    assert scores["loss"] == pytest.approx(sum(record["loss"] * record["tokens"] for record in records) / tokens)


def test_only_the_first_token_of_a_word_has_its_tag(tmp_path, minilm):
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(minilm)
    rows = [{"text": ["Unquestionably", "so"], "label": ["B", "O"]}]
    path = write(tmp_path / "long.jsonl", rows)
    task = TaskConfig(kind="token-classification", train=path, evaluation=path)
    (example,), _ = TASK.encode(task, TASK.read(task), words)
    pieces = words.convert_ids_to_tokens(example["input_ids"])
    assert len(pieces) > 4
    tagged = [(piece, label) for piece, label in zip(pieces, example["labels"], strict=True) if label != -100]
    assert tagged == [(pieces[1], 0), ("so", 1)]


def test_entities_are_scored_on_request(tmp_path):
    rows = [{"text": ["w1", "w2", "w3"], "label": ["B-PER", "I-PER", "O"]}] * 8
    path = write(tmp_path / "entities.jsonl", rows)
    task = {"kind": "token-classification", "train": path, "evaluation": path, "metric": "entity_f1"}
    scores, records = check_run(tiny_config(tmp_path, save_bert(tmp_path / "bert"), task, max_steps=20))
    assert (scores["primary"], scores["higher_is_better"]) == ("entity_f1", True)
    assert scores["entity_f1"] == 1
    assert records[0]["text"] == "w1 w2 w3"
    other = write(tmp_path / "other.jsonl", [{"text": ["w1", "w2"], "label": ["PER", "O"]}])
    with pytest.raises(DataError, match="needs tags such as B-PER, I-PER and O, but .* has 'PER'; name the tags so"):
        TASK.read(TaskConfig(kind="token-classification", train=other, evaluation=other, metric="entity_f1"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": ["w1", "w2"], "label": ["O"]}], "row 1 has 2 words and 1 tags"),
        ([{"text": ["w1"], "label": "O"}], "has 1 words and no list of tags"),
        ([{"text": "w1 w2", "label": ["O"]}], "has no list of words in column 'text'"),
        ([{"text": [], "label": []}], "has no list of words"),
        ([{"text": ["w1"], "label": ["O"]}], "has only the class 'O'"),
        ([{"text": ["w1", "w2"], "label": ["O", None]}], "no label"),
    ],
)
def test_what_cannot_be_used(tmp_path, rows, words):
    path = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match=words):
        TASK.read(TaskConfig(kind="token-classification", train=path, evaluation=path))


def test_a_tag_that_training_lacks(tmp_path):
    training = write(tmp_path / "a.jsonl", [{"text": ["w1", "w2"], "label": ["O", "X"]}])
    other = write(tmp_path / "b.jsonl", [{"text": ["w1"], "label": ["O"]}, {"text": ["w1"], "label": ["Y"]}])
    with pytest.raises(DataError, match="row 2 has the tag 'Y', which the training data lacks"):
        TASK.read(TaskConfig(kind="token-classification", train=training, evaluation=other))


def test_words_without_any_token(tmp_path):
    path = write(
        tmp_path / "empty.jsonl", [{"text": ["w1", "w2"], "label": ["O", "X"]}, {"text": [" "], "label": ["O"]}]
    )
    task = TaskConfig(kind="token-classification", train=path, evaluation=path)
    with pytest.raises(DataError, match="row 2 has no word within"):
        TASK.encode(task, TASK.read(task), tokenizer())


def capitals(folder, source, *, start, rows):
    """Real sentences in lower case; the tag says which words are names of speakers or begin with a capital."""
    lines = [line for line in source.read_text(encoding="utf-8").splitlines() if len(line.split()) > 4][start:]
    made = []
    for line in lines[:rows]:
        words = re.findall(r"\w+", line)
        tags = ["CAP" if word[0].isupper() else "O" for word in words]
        made.append({"tokens": [word.lower() for word in words], "tags": tags})
    return write(folder / f"capitals{start}.jsonl", made)


def real(tmp_path, minilm, data_root, *, rows, **training):
    source = data_root / "text" / "tinyshakespeare.txt"
    task = {
        "kind": "token-classification",
        "train": capitals(tmp_path, source, start=0, rows=rows),
        "evaluation": capitals(tmp_path, source, start=20_000, rows=max(16, rows // 8)),
        "text": "tokens",
        "label": "tags",
        "max_length": 16,
    }
    return tiny_config(tmp_path, minilm, task, learning_rate=2e-3, **training)


def test_capitals_quickly(tmp_path, minilm, data_root):
    scores, _ = check_run(real(tmp_path, minilm, data_root, rows=32, max_steps=2))
    assert scores["primary"] == "f1"
