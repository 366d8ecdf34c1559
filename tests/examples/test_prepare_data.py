"""The script that writes published experiments' rows in their own templates."""

from __future__ import annotations

import json
import runpy
import sys

import pytest

from places import REPOSITORY

SCRIPT = REPOSITORY / "examples" / "studies" / "prepare_data.py"


def prepare(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_alpaca_rows_keep_their_order(monkeypatch, tmp_path):
    source = tmp_path / "alpaca.json"
    source.write_text(json.dumps([{"instruction": f"do {i}", "input": "x", "output": f"done {i}"} for i in range(8)]))
    prepare(monkeypatch, "alpaca", "--source", source, "--rows", 5, "--eval-rows", 2, "--output", tmp_path / "out")
    training, evaluation = (rows(tmp_path / "out" / f"alpaca_5_{part}.jsonl") for part in ("train", "eval"))
    assert [row["completion"] for row in training] == [f"done {i}" for i in range(5)]
    assert [row["completion"] for row in evaluation] == ["done 5", "done 6"]
    assert training[0]["prompt"] == "### Instruction:\ndo 0\n\n### Response:\n"
    with pytest.raises(SystemExit, match="has 8 rows, but 8 \\+ 20 are asked for; ask for fewer"):
        prepare(monkeypatch, "alpaca", "--source", source, "--rows", 8, "--output", tmp_path / "out")


def test_metamath_rows_are_short_and_held_out_ones_do_not_train(monkeypatch, tmp_path):
    source = tmp_path / "math.json"
    texts = [{"query": f"q{i}", "response": "r" * (1400 if i == 3 else 5)} for i in range(20)]
    source.write_text(json.dumps(texts))
    prepare(monkeypatch, "metamath", "--source", source, "--eval-rows", 4, "--output", tmp_path)
    training, evaluation = (rows(tmp_path / f"metamath_{part}.jsonl") for part in ("train", "eval"))
    prompts = [row["prompt"] for row in training], [row["prompt"] for row in evaluation]
    assert (len(training), len(evaluation)) == (15, 4)
    assert not set(prompts[0]) & set(prompts[1])
    assert "Question: q3 Think step by step.\nAnswer:" not in [*prompts[0], *prompts[1]]
    assert all(prompt.endswith(" Think step by step.\nAnswer:") for prompt in prompts[0])


def test_a_text_is_cut_in_two_parts(monkeypatch, tmp_path):
    source = tmp_path / "play.txt"
    source.write_text("".join(f"line {i}\n" for i in range(25)))
    prepare(monkeypatch, "text", "--source", source, "--output", tmp_path / "out")
    training, evaluation = ((tmp_path / "out" / f"play_{part}.txt").read_text() for part in ("train", "eval"))
    assert training + evaluation == source.read_text()
    assert evaluation.splitlines() == ["line 22", "line 23", "line 24"]
    with pytest.raises(SystemExit, match="name it with --source"):
        prepare(monkeypatch, "text", "--output", tmp_path)
    with pytest.raises(SystemExit, match="is no file"):
        prepare(monkeypatch, "text", "--source", tmp_path / "none.txt", "--output", tmp_path)
