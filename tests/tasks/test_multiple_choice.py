"""Multiple choice by the likelihood of the answers."""

from __future__ import annotations

import json
import random

import pytest
import torch
from checks import check_contract, check_run, tiny_config

from tailora.config import TaskConfig
from tailora.errors import DataError
from tailora.tasks import TASKS
from tiny_runs import save_llama, tokenizer

TASK = TASKS["multiple-choice"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def questions(folder, *, rows=64, seed=0):
    """The right answer is the word that stands first."""
    draw = random.Random(seed)
    made = []
    for _ in range(rows):
        choices = draw.sample(["w1", "w2", "w3", "w4"], 3)
        right = draw.randrange(3)
        made.append({"text": f"{choices[right]} w9", "choices": choices, "label": right})
    return write(folder / f"questions{seed}.jsonl", made)


@pytest.fixture
def config(tmp_path):
    task = {
        "kind": "multiple-choice",
        "train": questions(tmp_path),
        "evaluation": questions(tmp_path, rows=24, seed=1),
        "text_pair": "choices",
        "max_length": 16,
    }
    return tiny_config(tmp_path, save_llama(tmp_path / "llama"), task, max_steps=60)


def test_contract(config):
    check_contract(config, loss="causal-lm", head=False)


def test_a_run_learns_the_answers(config):
    scores, records = check_run(config)
    assert scores["primary"] == "accuracy"
    assert scores["accuracy"] == sum(r["correct"] for r in records) / len(records)
    assert scores["accuracy"] > 0.6
    assert all(r["scores"].index(max(r["scores"])) >= 0 and len(r["scores"]) == 3 for r in records)
    assert scores["loss"] == pytest.approx(sum(r["loss"] for r in records) / len(records))


def instruction(tmp_path, **changes):
    row = {
        "q": "which ? Answer format: answer1/answer2/answer3",
        "sentence": "the answer is answer2",
        "answer": "answer2",
    }
    path = write(tmp_path / "instruction.jsonl", [row | changes])
    return TaskConfig(
        kind="multiple-choice", train=path, evaluation=path, text="q", text_pair="sentence", label="answer"
    )


def test_instruction_data(tmp_path, stories260k):
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(stories260k)
    task = instruction(tmp_path)
    (example,), _ = TASK.encode(task, TASK.read(task), words)
    assert (example["choices"], example["answer"]) == (("answer1", "answer2", "answer3"), 1)
    texts = []
    for ids, labels in example["candidates"]:
        start = labels.index(next(label for label in labels if label != -100))
        assert labels[start:] == ids[start:]
        assert set(labels[:start]) == {-100}
        texts.append(words.decode(ids[start:], skip_special_tokens=True).strip())
    assert texts == [f"the answer is answer{number}" for number in (1, 2, 3)]
    assert (example["input_ids"], example["labels"]) == example["candidates"][1]
    assert TASK.dataset([example]).column_names == ["input_ids", "labels"]


def test_scores_are_sums_over_the_answer(tmp_path):
    from transformers import AutoModelForCausalLM

    row = {"text": "w5 w6", "choices": ["w1 w2", "w3"], "label": "w3"}
    path = write(tmp_path / "one.jsonl", [row])
    task = TaskConfig(kind="multiple-choice", train=path, evaluation=path, text_pair="choices")
    words, model = tokenizer(), AutoModelForCausalLM.from_pretrained(save_llama(tmp_path / "llama"))
    _, examples = TASK.encode(task, TASK.read(task), words)
    result = TASK.evaluate(model, words, examples, batch_size=2)
    for (ids, labels), score in zip(examples[0]["candidates"], result.records[0]["scores"], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        slow = sum(float(logits[t - 1, ids[t]]) for t in range(len(ids)) if labels[t] != -100)
        assert score == pytest.approx(slow, rel=1e-5)
    assert result.records[0]["label"] == "w3"


def test_long_questions_lose_their_beginning(tmp_path):
    row = {"text": "w1 w2 w3 w4 w5 w6", "choices": ["w7", "w8"], "label": 1}
    path = write(tmp_path / "long.jsonl", [row])
    task = TaskConfig(kind="multiple-choice", train=path, evaluation=path, text_pair="choices", max_length=5)
    words = tokenizer()
    (example,), _ = TASK.encode(task, TASK.read(task), words)
    assert words.convert_ids_to_tokens(example["input_ids"]) == ["w1", "w5", "w6", "w8", "[SEP]"]
    with pytest.raises(DataError, match="row 1 has an answer of 2 tokens, which leaves no room"):
        TASK.encode(task.model_copy(update={"max_length": 3}), TASK.read(task), words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answer": "answer4"}, "has the answer 'answer4', which is none of answer1/answer2/answer3"),
        ({"q": "which ?"}, "names no two different answers"),
        ({"sentence": "the second"}, "does not stand in its text"),
        ({"sentence": ["only one"]}, "no list of two or more answers"),
        ({"sentence": ["a", "b"], "answer": 2}, "its 2 answers are numbered 0 to 1"),
        ({"sentence": ["a", "b"], "answer": None}, "has the answer None"),
    ],
)
def test_what_cannot_be_used(tmp_path, changes, words):
    with pytest.raises(DataError, match=words):
        TASK.read(instruction(tmp_path, **changes))


def test_the_hubs_pairs_of_lists(tmp_path):
    rows = [{"text": "w1", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "label": "B"}]
    path = write(tmp_path / "hub.jsonl", rows)
    task = TaskConfig(kind="multiple-choice", train=path, evaluation=path, text_pair="choices")
    (example,), _ = TASK.encode(task, TASK.read(task), tokenizer())
    assert (example["choices"], example["answer"]) == (("x", "y"), 1)


def arc(data_root, **changes):
    return {
        "kind": "multiple-choice",
        "train": str(data_root / "commonsense/ARC-Easy/train.json"),
        "evaluation": str(data_root / "commonsense/ARC-Easy/test.json"),
        "text": "instruction",
        "text_pair": "output",
        "label": "answer",
        "max_length": 384,
        **changes,
    }


def test_arc_quickly(tmp_path, stories260k, data_root):
    task = arc(data_root, train_examples=40, eval_examples=8)
    scores, records = check_run(tiny_config(tmp_path, stories260k, task, max_steps=2, learning_rate=1e-3))
    assert scores["primary"] == "accuracy"
    assert all(len(record["scores"]) in (3, 4, 5) for record in records)
