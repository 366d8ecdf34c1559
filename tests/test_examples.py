"""The examples for library use run as they are, learn something, and leave a stock peft adapter."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parents[1] / "examples" / "library"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Return a function that runs an example in this process and gives its output."""

    def call(name, *arguments):
        given = [name, "--output", tmp_path / "out", *arguments]
        monkeypatch.setattr(sys, "argv", [str(item) for item in given])
        runpy.run_path(str(LIBRARY / name), run_name="__main__")
        return capsys.readouterr().out

    return call


def change(text, what):
    """Return a printed number before and after."""
    found = re.search(rf"{what} ([\d.]+) -> ([\d.]+)", text)
    assert found, text
    return float(found[1]), float(found[2])


def planned(text):
    """Return how many parameters were planned, and how many might have been."""
    found = re.search(r"^([\d,]+) of ([\d,]+) parameters", text, re.M)
    assert found, text
    return tuple(int(number.replace(",", "")) for number in found.groups())


def test_a_loop_of_your_own(run, tmp_path):
    text = run("own_loop.py", "--steps", 40)
    before, after = change(text, "held-out loss")
    assert after < before - 0.1
    # Reloaded by peft alone it scores the same.
    assert f"reloaded: {after:.3f}" in text
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["total_params"] == planned(text)[0] <= planned(text)[1]


def test_the_trainer_of_transformers(run, tmp_path):
    before, after = change(run("own_trainer.py", "--steps", 50), "held-out accuracy")
    assert after > before + 0.1
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").is_file()


def test_the_sft_trainer_of_trl(run, tmp_path):
    before, after = change(run("trl_sft.py", "--steps", 20), "training loss")
    assert after < before
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["rank_pattern"]
    assert all(key.startswith("^") for key in config["rank_pattern"])


@pytest.mark.slow
def test_a_model_folder_may_be_given(run, stories260k):
    text = run("trl_sft.py", "--model", stories260k, "--steps", 20)
    before, after = change(text, "training loss")
    assert after < before


def test_every_example_has_a_test_and_says_how_to_run_it():
    here = Path(__file__).read_text()
    for path in LIBRARY.glob("*.py"):
        assert f'"{path.name}"' in here
        assert f"python examples/library/{path.name}" in path.read_text()
