"""Shared by the tests of the command line: a folder with small models, data, configurations and a profile."""

from __future__ import annotations

import json
import shlex
from types import SimpleNamespace

import pytest

import models
import tailora
from tailora.cli import main
from tiny_runs import review_config, save_llama, text_config


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """``bert`` with ``reviews0.jsonl`` and ``run.yaml``, ``llama`` with ``counting.txt`` and ``text.yaml``, ``p``."""
    root = tmp_path_factory.mktemp("home")
    save_llama(root / "llama")
    reviews = review_config(root, training={"max_steps": 2, "eval_steps": None})
    (root / "run.yaml").write_text(json.dumps(reviews.to_dict()), encoding="utf-8")
    text = text_config(root, training={"max_steps": 4, "save_steps": 1})
    (root / "text.yaml").write_text(json.dumps(text.to_dict()), encoding="utf-8")
    tailora.profile(models.build("llama"), models.batches("llama")).save(root / "p")
    return root


@pytest.fixture
def command(home, tmp_path, capsys):
    """Return a function that runs a command line; HOME and TMP stand for the two folders, there and in what it says.

    Of the lines on stderr it gives those that begin with ``tailora: ``, without these words.
    """

    def call(line, *more):
        def place(text):
            return str(text).replace("HOME", str(home)).replace("TMP", str(tmp_path))

        capsys.readouterr()
        try:
            main([place(word) for word in [*shlex.split(line), *more]])
            status = 0
        except SystemExit as end:
            status = end.code or 0
        captured = capsys.readouterr()
        err = captured.err.replace(str(home), "HOME").replace(str(tmp_path), "TMP")
        assert "Traceback" not in err
        said = [part.removeprefix("tailora: ") for part in err.splitlines() if part.startswith("tailora: ")]
        return SimpleNamespace(status=status, out=captured.out, err=err, said=said)

    return call


@pytest.fixture
def files(tmp_path):
    """Return a function that lists the files of the test's own folder."""
    return lambda: sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir())
