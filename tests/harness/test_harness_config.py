"""The section ``harness``: what enters a run's hash, and the sentences for what cannot be used."""

from __future__ import annotations

import shutil
import sys

import pytest
from harness_cases import EXAMPLES, save_tasks

from tailora.config import load_config, make_config
from tailora.errors import ConfigError, UserError
from tailora.harness import check_harness
from tailora.harness_files import local_tasks


@pytest.fixture
def places(tmp_path):
    return save_tasks(tmp_path)


def configured(places, tasks: str | list[str] = "counting", **changes):
    task = {"kind": changes.pop("kind", "causal-lm"), "train": f"{places['data_root']}/counting.jsonl"}
    return make_config({"model": "some/model", "task": task, "harness": {"tasks": tasks, **places, **changes}})


def test_without_the_section_nothing_changes():
    plain = make_config({"model": "some/model", "task": {"kind": "causal-lm", "train": "some/data"}})
    assert "harness" not in plain.to_dict()
    # What this configuration was called before there was such a section.
    assert plain.hash == "cea2c48543e2d771950cd90e1cf9a8d7d00d7822aa3f0807120cbdb7e1a7d0a7"


def test_tasks_and_their_data_enter_the_hash_by_content(places, tmp_path):
    first = configured(places).hash
    assert first == configured(places, tasks=["counting"]).hash
    assert first != configured(places, limit=3).hash
    assert first != configured(places, tasks="counting,writing").hash

    moved = {key: shutil.copytree(place, tmp_path / "elsewhere" / key) for key, place in places.items()}
    moved = {key: str(place) for key, place in moved.items()}
    train = {"kind": "causal-lm", "train": f"{places['data_root']}/counting.jsonl"}
    values = {"model": "some/model", "task": train, "harness": {"tasks": "counting", **moved}}
    assert make_config(values).hash == first

    other = tmp_path / "elsewhere" / "include_path" / "writing.yaml"
    other.write_text(other.read_text().replace("[SEP]", "w3"))
    assert make_config(values).hash == first  # another task's file
    mine = other.with_name("counting.yaml")
    mine.write_text(mine.read_text().replace("{{start}}", "count {{start}}"))
    changed = make_config(values).hash
    assert changed != first
    data = tmp_path / "elsewhere" / "data_root" / "counting.jsonl"
    data.write_text(data.read_text().replace("w3", "w4"))
    assert make_config(values).hash not in (first, changed)


def test_included_files_and_functions_belong_to_a_task(data_root):
    found = local_tasks(str(EXAMPLES), ["arc_easy_file"], str(data_root))
    assert {path.name for path in found.files} == {"arc_easy_file.yaml", "_choices_template", "choices.py"}
    assert {path.relative_to(data_root).as_posix() for path in found.data} == {
        "commonsense/ARC-Easy/train.json",
        "commonsense/ARC-Easy/test.json",
    }
    tagged = local_tasks(str(EXAMPLES), ["commonsense_file", "gsm8k"], str(data_root))
    assert len(tagged.data) == 6
    assert tagged.missing == ("gsm8k",)


def test_groups_bring_their_members(places, tmp_path):
    group = "group: both\ntask: [counting, {task: writing, num_fewshot: 0}]\n"
    (tmp_path / "tasks" / "both.yaml").write_text(group)
    found = local_tasks(places["include_path"], ["both"], places["data_root"])
    assert {path.name for path in found.files} == {"both.yaml", "counting.yaml", "writing.yaml"}


def test_paths_are_relative_to_the_configuration(places, tmp_path):
    (tmp_path / "run.yaml").write_text(
        "model: some/model\ntask: {kind: causal-lm, train: data/counting.jsonl}\n"
        "harness: {tasks: counting, include_path: tasks, data_root: data}\n"
    )
    section = load_config(tmp_path / "run.yaml").harness
    assert section is not None
    assert (section.include_path, section.data_root) == (places["include_path"], places["data_root"])
    assert section.tasks == ("counting",)


def test_data_root_comes_from_the_environment(places, monkeypatch):
    root = places.pop("data_root")
    with pytest.raises(ConfigError, match=r"reads data in \$\{data_root\}; give .*TAILORA_DATA"):
        local_tasks(places["include_path"], ["counting"], None)
    monkeypatch.setenv("TAILORA_DATA", root)
    assert [path.name for path in local_tasks(places["include_path"], ["counting"], None).data] == ["counting.jsonl"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tasks": []}, "harness.tasks"),
        ({"tasks": "counting,counting"}, "task 'counting' is given twice; name it once"),
        ({"num_shots": 3}, "unknown key 'harness.num_shots'; did you mean"),
        ({"include_path": "/nowhere/at/all"}, "harness.include_path='/nowhere/at/all' is no folder; give"),
        ({"data_root": "/nowhere/at/all"}, "harness.data_root='/nowhere/at/all' is no folder"),
        ({"primary": "countin"}, "unknown task in harness.primary 'countin'; did you mean 'counting'"),
        ({"primary": "counting/ac"}, "unknown metric of counting in harness.primary 'ac'; did you mean 'acc'"),
        ({"primary": "counting/acc,strict"}, "unknown filter of counting in harness.primary 'strict'"),
        ({"max_gen_toks": 5}, "harness.max_gen_toks is 5, but no task of 'counting' generates text"),
        ({"kind": "text-classification"}, "task.kind is 'text-classification'"),
    ],
)
def test_sentences(places, changes, sentence):
    with pytest.raises(UserError) as error:
        check_harness(configured({**places, **{k: v for k, v in changes.items() if k in places}}, **changes))
    text = str(error.value)
    assert sentence in text
    assert "\n" not in text


def test_broken_task_files(places, tmp_path):
    path = tmp_path / "tasks" / "counting.yaml"
    path.write_text("task: [counting\n")
    (tmp_path / "tasks" / "writing.yaml").unlink()
    with pytest.raises(ConfigError, match="holds no task file"):
        local_tasks(places["include_path"], ["counting"], None)
    path.write_text("include: ../../outside.yaml\ntask: counting\n")
    (tmp_path.parent / "outside.yaml").write_text("output_type: multiple_choice\n")
    with pytest.raises(ConfigError, match="outside harness.include_path"):
        local_tasks(places["include_path"], ["counting"], None)


def test_missing_data_is_a_sentence(places, tmp_path):
    (tmp_path / "data" / "counting.jsonl").rename(tmp_path / "data" / "gone.jsonl")
    task = {"kind": "causal-lm", "train": str(tmp_path / "data" / "gone.jsonl")}
    config = make_config({"model": "some/model", "task": task, "harness": {"tasks": "counting", **places}})
    with pytest.raises(ConfigError, match="harness.tasks='counting' cannot be loaded .*check the task files"):
        check_harness(config)


def test_several_processes_are_refused(places, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="harness scores in one process, but 2 are at work; .*tailora eval"):
        check_harness(configured(places))


def test_missing_package_is_a_sentence(places, monkeypatch):
    # Python's own way to say that a package cannot be imported.
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"not installed; run \"pip install 'tailora\[harness\]'\""):
        check_harness(configured(places))


@pytest.mark.slow
def test_names_of_the_registry(places):
    with pytest.raises(ConfigError, match="unknown task 'arc_eazy'; did you mean 'arc_easy'"):
        check_harness(configured(places, tasks="arc_eazy"))
    with pytest.raises(ConfigError, match="unknown task 'countin'; did you mean 'counting'"):
        check_harness(configured(places, tasks="countin"))
    # Known, but its data is on the hub, which no test may reach.
    with pytest.raises(
        ConfigError, match="harness.tasks='counting, arc_easy' cannot be loaded .*connection to the hub"
    ):
        check_harness(configured(places, tasks="counting,arc_easy"))
