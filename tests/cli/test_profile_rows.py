"""Which rows ``tailora profile`` measures: all of its data, or what 'tailora train' would leave for training."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from tailora.config import TaskConfig
from tailora.profiles import Profile
from tailora.tasks import TASKS
from tiny_runs import save_reviews


@pytest.fixture
def rows(tmp_path):
    """Write 40 rows of different lengths as ``t.jsonl``, their halves as ``a.jsonl`` and ``b.jsonl``."""
    draw = random.Random(0)
    lines = [json.dumps({"text": " ".join(f"w{draw.randrange(40)}" for _ in range(3 + n % 8))}) for n in range(40)]
    for name, part in (("t", lines), ("a", lines[:20]), ("b", lines[20:]), ("one", lines[:1])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part) + "\n")
    return lines


def meta(tmp_path, name="p"):
    return Profile.load(tmp_path / name).meta


@pytest.mark.parametrize(("option", "examples"), [("", 40), ("--hold-out 0.1", 36), ("--hold-out 0.5", 20)])
def test_all_rows_unless_some_are_to_be_left_out(command, rows, tmp_path, option, examples):
    result = command(f"profile HOME/llama --data TMP/t.jsonl --examples 1000 {option} -o TMP/p")
    assert (result.status, result.said) == (0, [])
    assert meta(tmp_path)["examples"] == examples


def test_one_row_is_enough(command, rows, tmp_path):
    assert command("profile HOME/llama --data TMP/one.jsonl -o TMP/p").status == 0
    assert meta(tmp_path)["examples"] == 1


def test_two_halves_are_the_whole(command, rows, tmp_path):
    for name in ("t", "a", "b"):
        assert (
            command(f"profile HOME/llama --data TMP/{name}.jsonl --examples 99 --keep-sums -o TMP/{name}").status == 0
        )
    assert command("merge TMP/a TMP/b -o TMP/both").status == 0
    both, whole = Profile.load(tmp_path / "both"), Profile.load(tmp_path / "t")
    assert both.meta["examples"] == whole.meta["examples"] == 40
    for name, values in whole.signals.items():
        np.testing.assert_allclose(both.signals[name], values, rtol=1e-5, atol=1e-6 * np.abs(values).max())


def test_what_is_held_out_is_what_training_would_hold_out(command, tmp_path):
    data = save_reviews(tmp_path)
    how = "profile HOME/bert --task text-classification --signals fisher --examples 500"
    assert command(f"{how} --data TMP/{data.name} --hold-out 0.25 -o TMP/p").status == 0
    task = TaskConfig(kind="text-classification", train=str(data), validation=0.25)
    table = TASKS["text-classification"].read(task).train
    lines = [
        json.dumps(dict(zip(table.columns, row, strict=True))) for row in zip(*table.columns.values(), strict=True)
    ]
    (tmp_path / "kept.jsonl").write_text("\n".join(lines) + "\n")
    assert command(f"{how} --data TMP/kept.jsonl -o TMP/kept").status == 0
    assert meta(tmp_path)["examples"] == 72
    assert meta(tmp_path, "kept")["data"] == meta(tmp_path)["data"]


def test_all_rows_of_classes_of_a_split_and_of_one_text(command, home, tmp_path):
    data = save_reviews(tmp_path)
    assert (
        command(f"profile HOME/bert --task text-classification --data TMP/{data.name} --examples 500 -o TMP/p").status
        == 0
    )
    assert meta(tmp_path)["examples"] == 96
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.jsonl").write_bytes(data.read_bytes())
    assert command("profile HOME/bert --task text-classification --data TMP/d --examples 500 -o TMP/q").status == 0
    assert meta(tmp_path, "q")["data"] == meta(tmp_path)["data"]
    assert command("profile HOME/llama --data HOME/counting.txt --max-length 9 --examples 999 -o TMP/t").status == 0
    words = len((home / "counting.txt").read_text().split())
    assert meta(tmp_path, "t")["examples"] == -(-words // 9) - (words % 9 == 1)


def test_all_rows_of_scores(command, tmp_path):
    rows = [json.dumps({"text": f"w{n}", "label": n / 2}) for n in range(12)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows) + "\n")
    assert command("profile HOME/bert --task regression --data TMP/t.jsonl --examples 99 -o TMP/p").status == 0
    assert meta(tmp_path)["examples"] == 12


def test_nothing_is_said_of_an_evaluation(command, tmp_path, caplog):
    """The rows that stand in for those that evaluate may even have nothing to predict."""
    texts = ["w1"] * 8 + [" ".join(f"w{n}" for n in range(30))] * 8
    lines = [json.dumps({"p": text, "c": "" if text == "w1" else "w2 w3"}) for text in texts]
    lines[8:] = [json.dumps({"p": "w1 w2", "c": " ".join(f"w{n}" for n in range(30))})] * 8
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    columns = "--text p --text-pair c --max-length 12"
    assert command(f"profile HOME/llama --data TMP/t.jsonl {columns} --examples 99 -o TMP/p").status == 0
    assert meta(tmp_path)["examples"] in (8, 16)
    assert "training examples" in caplog.text
    assert "evaluation" not in caplog.text


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--data TMP/t.jsonl --hold-out 1", "tailora profile: task.validation=1.0 cannot be used: it should be less"),
        ("--data TMP/t.jsonl --hold-out -1", "tailora profile: task.validation=-1.0 cannot be used: it should be gre"),
        ("--signals stable_rank --hold-out 0.5", "--hold-out 0.5 goes with --data; leave it out, or name the data"),
        ("--signals stable_rank --resume TMP/f", "--resume TMP/f goes with --data; leave it out, or name the data"),
    ],
)
def test_shares_that_cannot_be(command, rows, line, sentence):
    result = command(f"profile HOME/llama {line} -o TMP/p")
    assert result.status == 2
    assert result.said[0].startswith(sentence)
