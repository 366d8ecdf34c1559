"""``package:NAME/FOLDER`` is a model on the command line as in a configuration."""

from __future__ import annotations

import json
import shutil

import pytest

from tailora.config_files import find_model


@pytest.fixture
def package(home, tmp_path, monkeypatch):
    """A Python package that holds a model."""
    folder = tmp_path / "site" / "some_models"
    shutil.copytree(home / "llama", folder / "llama")
    (folder / "__init__.py").write_text("raise AssertionError('nobody imports it')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def test_every_command_with_a_model_takes_it(command, package):
    result = command("inspect package:some_models/llama --json")
    assert result.status == 0
    assert json.loads(result.out)["model_class"] == "LlamaForCausalLM"
    assert command("inspect package:some_models/llama/config.json").status == 0
    result = command("profile package:some_models/llama --signals stable_rank -o TMP/p --json")
    assert (result.status, json.loads(result.out)["meta"]["model_class"]) == (0, "LlamaForCausalLM")
    result = command("plan --model package:some_models/llama --budget r=2 --json")
    assert result.status == 0
    assert json.loads(result.out)["targets"]


@pytest.mark.parametrize("line", ["inspect", "profile -o TMP/p", "plan --model", "lab --architecture"])
def test_what_is_not_there(command, package, files, line):
    before = files()
    first, _, rest = line.partition(" -o")
    more = f" -o{rest}" if rest else ""
    result = command(f"{first} package:some_models/nowhere{more}")
    assert (result.status, result.said) == (
        2,
        ["model='package:some_models/nowhere': the package 'some_models' has no folder 'nowhere'; correct it"],
    )
    result = command(f"{first} package:not_installed_at_all/model{more}")
    assert result.status == 2
    assert "there is no Python package 'not_installed_at_all' here; install it" in result.said[0]
    assert files() == before


def test_other_models_stand_for_themselves(tmp_path):
    for name in ("org/name", str(tmp_path), "~/m", ""):
        assert find_model(name) == name


@pytest.mark.parametrize("name", ["package:__main__/x", "package:", "package:a.b/c", "package:json.py"])
def test_odd_packages_are_refused(command, name):
    result = command(f"inspect {name}")
    assert result.status == 2
    assert len(result.said) == 1


def test_parts_of_a_package_in_several_places(tmp_path, monkeypatch):
    for part in ("one", "two"):
        (tmp_path / part / "spread_models" / part).mkdir(parents=True)
        monkeypatch.syspath_prepend(str(tmp_path / part))
    assert find_model("package:spread_models/one") == str(tmp_path / "one" / "spread_models" / "one")
    assert find_model("package:spread_models/two") == str(tmp_path / "two" / "spread_models" / "two")
