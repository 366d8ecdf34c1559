"""Training on a stream: which rows train, in which order, and what resuming gives."""

from __future__ import annotations

import itertools
import json
import logging
import signal

import pytest

from tailora.artifacts import read_json
from tailora.config import TaskConfig, make_config
from tailora.data import streams
from tailora.errors import ConfigError, DataError
from tailora.runs import execute
from tailora.stopping import Interrupted, StopRequest
from tailora.tasks import TASKS
from tailora.tasks.calibration import prepare
from tailora.tasks.streams import check_streaming
from tiny_runs import read_rows, text_config, tokenizer

LANGUAGE = TASKS["causal-lm"]
TOKENS = tokenizer()


def rows_file(path, rows=120):
    """Row ``n`` starts with the word ``w(n % 40)`` and goes on with its tens."""
    lines = [json.dumps({"text": f"w{number % 40} w{number // 40} good bad"}) for number in range(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def read(path, **settings):
    task = TaskConfig(**{"kind": "causal-lm", "train": path, "streaming": True, "max_length": 16, **settings})
    splits = LANGUAGE.read(task)
    return task, splits, *LANGUAGE.encode(task, splits, TOKENS)


def numbers(examples):
    """Which row of ``rows_file`` each example is."""
    words = [TOKENS.convert_ids_to_tokens(example["input_ids"][:2]) for example in examples]
    return [int(first[1:]) + 40 * int(second[1:]) for first, second in words]


def streaming_config(tmp_path, **changes):
    task = {
        "train": rows_file(tmp_path / "rows.jsonl"),
        "streaming": True,
        "eval_examples": 20,
        "shuffle_buffer": 8,
        **changes.pop("task", {}),
    }
    training = {"use_cpu": True, "max_steps": 20, "save_steps": 4, **changes.pop("training", {})}
    return text_config(tmp_path, task=task, training=training, **changes)


def test_the_front_evaluates_and_never_trains(tmp_path):
    _, splits, training, evaluation = read(rows_file(tmp_path / "rows.jsonl"), eval_examples=20, shuffle_buffer=8)
    assert numbers(evaluation) == list(range(20))
    assert splits.train.number(0) == 21
    passes = numbers(itertools.islice(training.endless(), 200))
    assert sorted(passes[:100]) == sorted(passes[100:]) == list(range(20, 120))
    assert passes[:100] != passes[100:]
    assert numbers(itertools.islice(training.seeded(0).endless(), 200)) == passes
    assert numbers(itertools.islice(training.seeded(1).endless(), 200)) != passes
    assert numbers(training.front(5)) == list(range(20, 25))


def test_capped_and_in_order(tmp_path):
    path = rows_file(tmp_path / "rows.jsonl")
    other = rows_file(tmp_path / "other.jsonl", rows=30)
    _, _, training, evaluation = read(path, evaluation=other, train_examples=7, shuffle_buffer=0, eval_examples=10)
    assert numbers(itertools.islice(training.endless(), 10)) == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert len(evaluation) == 10
    assert set(numbers(evaluation)) < set(range(30))


def test_only_the_needed_rows_are_read(tmp_path, monkeypatch):
    path, taken = rows_file(tmp_path / "rows.jsonl", rows=5000), []
    whole = streams._json_rows

    def counting(*arguments):
        for row in whole(*arguments):
            taken.append(row)
            yield row

    monkeypatch.setattr(streams, "_json_rows", counting)
    _, splits, training, _ = read(path, eval_examples=10, shuffle_buffer=8)
    assert len(splits.train) == 256
    taken.clear()
    list(itertools.islice(training.endless(), 20))
    # Evaluation rows are passed over, the buffer is filled, and rows are tokenised 64 at a time.
    assert len(taken) == 10 + 64


def test_examples_are_those_of_the_table(tmp_path):
    path, other = rows_file(tmp_path / "rows.jsonl"), rows_file(tmp_path / "other.jsonl", rows=5)
    for packing in (False, True):
        shared = {"evaluation": other, "packing": packing, "shuffle_buffer": 0}
        _, _, streamed, _ = read(path, **shared)
        _, _, whole, _ = read(path, **shared, streaming=False)
        assert list(itertools.islice(streamed.endless(), len(whole))) == list(whole)


def test_running_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"w{n % 40} w{(n + 1) % 40} w{(n + 2) % 40}\n" for n in range(300)), encoding="utf-8")
    _, _, training, evaluation = read(str(path), eval_examples=50, shuffle_buffer=0)
    ids = [token for example in evaluation for token in example["input_ids"]]
    assert TOKENS.decode(ids).split()[:3] == ["w0", "w1", "w2"]
    assert len(ids) == 150
    blocks = training.front(1000)
    assert {len(block["input_ids"]) for block in blocks[:-1]} == {16}
    text = path.read_text().splitlines(keepends=True)
    assert [t for block in blocks for t in block["input_ids"]] == TOKENS("".join(text[50:]))["input_ids"]


def test_what_is_cut_at_the_front_is_told(tmp_path, caplog):
    path = rows_file(tmp_path / "rows.jsonl")
    with caplog.at_level(logging.WARNING, logger="tailora.data"):
        _, _, training, _ = read(path, eval_examples=20, max_length=3)
    assert f"the first 100 training rows of {path}: 100 of 100 training examples were cut to 3 tokens" in caplog.text
    assert training.report.cut == 100


def test_the_profile_is_of_the_first_rows_and_follows_the_source(tmp_path):
    config = streaming_config(tmp_path)
    prepared = prepare(config)
    batches = prepared.task.calibration(TOKENS, prepared.training, count=300, batch_size=50, seed=3)
    assert sum(len(batch["labels"]) for batch in batches) == 100
    (first,) = prepared.task.calibration(TOKENS, prepared.training, count=4, batch_size=4, seed=3)
    assert sorted(numbers({"input_ids": ids} for ids in first["input_ids"].tolist())) == [20, 21, 22, 23]
    before = prepared.splits.fingerprint
    rows_file(tmp_path / "rows.jsonl", rows=119)
    assert prepare(config).splits.fingerprint != before


def test_a_run_learns_and_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    whole = execute(streaming_config(tmp_path, output=str(tmp_path / "whole")))
    scores, history = read_json(whole / "scores.json"), read_rows(whole / "history.jsonl")
    assert scores["examples"] == 20
    assert history[-2]["loss"] < history[0]["loss"]
    # 20 steps of 8 examples read the 100 rows more than once.
    halted = streaming_config(tmp_path, output=str(tmp_path / "halted"))
    request = StopRequest()

    def stop_at(stage, done, total):
        if stage == "train" and done == 16:
            request.number = signal.SIGTERM

    monkeypatch.setattr("tailora.runs.StopRequest", lambda: request)
    with pytest.raises(Interrupted):
        execute(halted, progress=stop_at)
    monkeypatch.undo()
    folder = execute(halted)
    assert read_json(folder / "timings.json")["resumed_from_step"] == 16
    assert read_json(folder / "scores.json")["loss"] == pytest.approx(scores["loss"], rel=1e-5)
    assert [row["loss"] for row in read_rows(folder / "history.jsonl")] == pytest.approx(
        [row["loss"] for row in history], rel=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"max_steps": None}}, "training.max_steps is missing: the length of a stream is not known"),
        (
            {"training": {"early_stopping_patience": 1, "eval_steps": 2}},
            "no share of the training examples can be held out",
        ),
    ],
)
def test_what_a_stream_cannot_do(tmp_path, changes, words):
    config = streaming_config(tmp_path, **changes)
    with pytest.raises(ConfigError, match=words):
        check_streaming(config)
    with pytest.raises(ConfigError, match=words):
        execute(config)
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({}, "nothing evaluates: give task.evaluation, or in task.eval_examples the number of rows"),
        ({"eval_examples": 5, "validation": 0.2}, "task.validation is 0.2 but task.streaming is true"),
        ({"kind": "seq2seq", "eval_examples": 5}, "task.streaming is true but task.kind is 'seq2seq'"),
    ],
)
def test_configurations_that_are_refused(task, words):
    with pytest.raises(ConfigError, match=words):
        make_config({"model": "m", "task": {"kind": "causal-lm", "train": "a.jsonl", "streaming": True, **task}})


def test_too_few_rows(tmp_path):
    with pytest.raises(DataError, match="has no row to train on behind the 10 of task.eval_examples"):
        read(rows_file(tmp_path / "rows.jsonl", rows=8), eval_examples=10)
