from __future__ import annotations

import pytest
import yaml
from study_cases import study_file

from tailora.errors import ConfigError
from tailora.studies.files import load_study
from tailora.studies.layers import laid_over, substituted


def test_mappings_merge_and_lists_replace():
    below = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    above = {"a": {"c": [3], "e": None}}
    assert laid_over(below, above) == {"a": {"b": 1, "c": [3], "e": None}, "d": 3}
    assert below == {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert laid_over({"a": [1]}, {})["a"] is not below["a"]["c"]


def test_one_duration_replaces_the_other():
    assert laid_over({"training": {"num_train_epochs": 3}}, {"training": {"max_steps": 5}}) == {
        "training": {"max_steps": 5}
    }
    assert laid_over({"max_steps": 5}, {"learning_rate": 1}) == {"max_steps": 5, "learning_rate": 1}


def test_variables_then_environment_then_default(monkeypatch):
    monkeypatch.setenv("STUDY_TEST_PLACE", "/there")
    monkeypatch.delenv("STUDY_TEST_NOWHERE", raising=False)
    known = {"data": "${STUDY_TEST_PLACE}/data", "loop": "x${loop}"}
    value = {"a": ["${data}/x", 3], "b": "${STUDY_TEST_NOWHERE:-../d}"}
    assert substituted(value, known, "s") == {"a": ["/there/data/x", 3], "b": "../d"}
    with pytest.raises(ConfigError, match="STUDY_TEST_NOWHERE.*neither in 'variables' nor in the environment"):
        substituted("${STUDY_TEST_NOWHERE}", known, "s")
    with pytest.raises(ConfigError, match="'loop' contains itself"):
        substituted("${loop}", known, "s")


def test_a_study_file(tmp_path):
    study = load_study(study_file(tmp_path, seeds=3, baseline="lora", learning_rate=[0.1, "1e-3"]))
    assert study.name == "study"
    assert study.seeds == (0, 1, 2)
    assert study.learning_rate.fixed == (0.1, 0.001)
    assert study.output == str(tmp_path / "out")
    assert [entry["name"] for entry in study.recipes] == ["lora", "spectral"]
    named = load_study(study_file(tmp_path, output=None))
    assert named.output == str(tmp_path / "studies" / "study")


def test_overrides_go_before_scales_and_scales_before_the_file(tmp_path):
    path = study_file(tmp_path, seeds=[4], scales={"small": {"seeds": [5], "base": {"training": {"max_steps": 2}}}})
    assert load_study(path).seeds == (4,)
    small = load_study(path, ["scale=small"])
    assert small.seeds == (5,)
    assert small.base["training"]["max_steps"] == 2
    assert small.base["training"]["save_steps"] == 2
    assert load_study(path, ["scale=small", "seeds=[6]", "base.training.max_steps=3"]).seeds == (6,)


def test_included_files_lie_below_and_keep_their_own_folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.txt").write_text("a")
    common = {
        "recipes": ["dora"], "seeds": 7, "base": {"task": {"train": "./a.txt"}},
        "scales": {"tiny": {"budgets": ["r=2"]}},
    }  # fmt: skip
    (tmp_path / "inner" / "common.yaml").write_text(yaml.safe_dump(common))
    path = tmp_path / "study.yaml"
    path.write_text("include: [inner/common.yaml]\nrecipes: [lora]\n")
    study = load_study(path, ["scale=tiny"])
    assert [entry["recipe"] for entry in study.recipes] == ["lora"]
    assert len(study.seeds) == 7
    assert study.base["task"]["train"] == str(tmp_path / "inner" / "a.txt")
    assert study.budgets[0]["budget"] == "r=2"
    path.write_text("include: [study.yaml]\n")
    with pytest.raises(ConfigError, match="again and again"):
        load_study(path)


@pytest.mark.parametrize(
    ("keys", "overrides", "words"),
    [
        ({"recepes": ["lora"]}, [], "unknown key 'recepes'; did you mean 'recipes'"),
        ({}, ["sedes=3"], "unknown key 'sedes'; did you mean 'seeds'"),
        ({"seeds": 0}, [], "seeds=0 cannot be used"),
        ({"seeds": [1, 1]}, [], "holds the seed 1 twice"),
        ({"seeds": True}, [], "must be a number of seeds"),
        ({"learning_rate": {"serch": [1e-3]}}, [], "without 'search'"),
        ({"learning_rate": {"search": [1e-3, 1e-2], "seed": 2}}, [], "unknown key 'learning_rate.seed'; did you mean"),
        ({"learning_rate": {"search": [1e-3]}}, [], "among which nothing can be chosen"),
        ({"learning_rate": {"search": [1e-3, 1e-2], "seeds": 3}}, [], "more than the study's 1 seeds"),
        ({"learning_rate": -1}, [], "learning_rate"),
        ({"recipes": "lora"}, [], "recipes='lora' cannot be used: must be a list"),
        ({"recipes": [3]}, [], "holds 3, but entries are names"),
        ({"tasks": ["sst2"]}, [], "tasks holds 'sst2'"),
        ({}, ["scale=smal"], "scale='smal' is no scale of this study; known: full"),
        ({"resources": {"cpu": 1}}, [], "unknown key 'resources.cpu'; did you mean"),
        ({"variables": ["a"]}, [], "variables must be names"),
        ({"include": "a.yaml"}, [], "include must be a list"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, keys, overrides, words):
    with pytest.raises(ConfigError) as caught:
        load_study(study_file(tmp_path, **keys), overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_inside_a_package(tmp_path):
    from tailora.config_files import resolve_paths

    assert resolve_paths({"model": "package:_pytest/assertion"}, tmp_path)["model"].endswith("/_pytest/assertion")
    with pytest.raises(ConfigError, match="'_pytest' has no folder 'nowhere'"):
        resolve_paths({"model": "package:_pytest/nowhere"}, tmp_path)
    with pytest.raises(ConfigError, match="there is no Python package 'not_installed_at_all'"):
        resolve_paths({"model": "package:not_installed_at_all/model"}, tmp_path)
