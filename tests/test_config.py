"""Configuration files: what is read, what is refused, and what the hash depends on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tailora.config import load_config, make_config
from tailora.errors import ConfigError

BASE = {"model": "org/model", "task": {"kind": "causal-lm", "train": "org/data"}}


ONE_PROCESS = make_config(BASE).hash


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_and_names(tmp_path):
    path = write(tmp_path / "run.yaml", "model: org/model\ntask: {kind: causal-lm, train: texts/train.txt}\n")
    config = load_config(path)
    assert (config.recipe, config.budget, config.placement, config.seed) == ("lora", "r=8", "all-linear", 0)
    assert config.task.name == "texts"
    assert config.model == "org/model"
    assert config.task.train == str(tmp_path / "texts" / "train.txt")
    assert config.output == str(tmp_path / "runs")


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3", "1E-3"])
def test_yaml_reads_every_way_to_write_a_rate(tmp_path, text):
    path = write(
        tmp_path / "run.yaml",
        f"model: org/model\ntask: {{kind: causal-lm, train: org/data}}\ntraining: {{learning_rate: {text}}}\n",
    )
    assert load_config(path).training.learning_rate == 1e-3
    assert load_config(path, [f"training.learning_rate={text}"]).training.learning_rate == 1e-3


def test_overrides_win_and_make_sections(tmp_path):
    path = write(tmp_path / "run.yaml", "model: org/model\ntask: {kind: causal-lm, train: org/data}\n")
    config = load_config(path, ["training.max_steps=7", "seed=3", "budget=4000", "task.text=2", "allocation.r_max=4x"])
    assert (config.training.max_steps, config.seed, config.budget) == (7, 3, "4000")
    assert config.task.text == 2
    assert config.allocation == {"r_max": "4x"}


def test_override_paths_belong_to_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    path = write(tmp_path / "there" / "run.yaml", "model: org/model\ntask: {kind: causal-lm, train: a.txt}\n")
    monkeypatch.chdir(tmp_path)
    config = load_config(path, ["task.evaluation=b.txt", "output=results"])
    assert config.task.train == str(tmp_path / "there" / "a.txt")
    assert config.task.evaluation == str(tmp_path / "b.txt")
    assert config.output == str(tmp_path / "results")


def change(**changes):
    values = {**BASE, "task": dict(BASE["task"])}
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (values.setdefault(section, {}) if section else values)[name] = value
    return values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (change(recipee="lora"), ["unknown key 'recipee'", "did you mean 'recipe'"]),
        (change(training__steps=5), ["unknown key 'training.steps'", "did you mean 'max_steps'"]),
        (change(task__lable="x"), ["'task.lable'", "did you mean 'label'"]),
        (change(training__learning_rate=-1), ["training.learning_rate=-1", "greater than 0"]),
        (change(training__learning_rate=float("nan")), ["training.learning_rate=nan", "greater than 0"]),
        (change(training__learning_rate="fast"), ["training.learning_rate='fast'", "number"]),
        (change(training__max_steps=2.5), ["training.max_steps=2.5", "integer"]),
        (change(training__max_steps=True), ["training.max_steps=True", "number"]),
        (
            change(training__max_steps=5, training__num_train_epochs=2),
            ["max_steps=5", "num_train_epochs=2", "keep one"],
        ),
        (change(training__early_stopping_patience=2), ["early_stopping_patience needs training.eval_steps"]),
        (change(training__load_best_model_at_end=True), ["load_best_model_at_end needs training.eval_steps"]),
        (change(training__push_to_hub=True), ["push_to_hub=true needs training.hub_model_id"]),
        (change(training__bf16=True, training__fp16=True), ["bf16=true and training.fp16=true", "keep one"]),
        (change(training__report_to="tensorbord"), ["report_to", "'tensorbord'", "did you mean 'tensorboard'"]),
        (change(training__optim="adam"), ["training.optim='adam'", "adamw_torch"]),
        (change(seed=2**32), ["seed=4294967296"]),
        (change(training__lr_scheduler_type="cosin"), ["lr_scheduler_type='cosin'", "did you mean 'cosine'"]),
        (change(task__kind="causal-ml"), ["task.kind='causal-ml'", "did you mean 'causal-lm'"]),
        (change(task__evaluate_on="evaluation"), ["task.evaluate_on", "task.evaluation is missing"]),
        (change(task__validation=1.5), ["task.validation=1.5", "less than 1"]),
        (change(task="sst2"), ["task='sst2'"]),
        (change(seed=-1), ["seed=-1"]),
        (change(calibration__examples=0), ["calibration.examples=0"]),
        ({"task": BASE["task"]}, ["'model' is missing"]),
        ({"model": "m", "task": {"kind": "causal-lm"}}, ["'task.train' is missing"]),
    ],
)
def test_what_is_wrong_is_one_sentence(values, words):
    with pytest.raises(ConfigError) as caught:
        make_config(values)
    message = str(caught.value)
    assert "\n" not in message
    assert "function-" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "holds a list"),
        ("model: [a\n", "not valid YAML"),
        ("model: a\nmodel: b\n", "key 'model' is given twice"),
        ("1: a\n", "key 1 is not text"),
    ],
)
def test_broken_yaml(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(write(tmp_path / "run.yaml", text))
    assert "run.yaml" in str(caught.value)


def test_missing_folder_and_encoding(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin.yaml")


@pytest.mark.parametrize("override", ["seed", "=3", "model.x=1"])
def test_bad_overrides(tmp_path, override):
    path = write(tmp_path / "run.yaml", "model: org/model\ntask: {kind: causal-lm, train: org/data}\n")
    with pytest.raises(ConfigError, match=r"override"):
        load_config(path, [override])


def test_hash_follows_content_and_not_place(tmp_path):
    hashes = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.txt", "some text")
        write(tmp_path / name / "run.yaml", "model: org/m\ntask: {kind: causal-lm, train: a.txt}\n")
        hashes.append(load_config(tmp_path / name / "run.yaml", [f"output={name}"]).hash)
    assert hashes[0] == hashes[1]
    write(tmp_path / "there" / "a.txt", "some other text")
    assert load_config(tmp_path / "there" / "run.yaml").hash != hashes[0]


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"budget": "r=4"}, {"training__learning_rate": 1e-3}, {"task__max_length": 9}]
)
def test_hash_changes_with_what_matters(changes):
    assert make_config(change(**changes)).hash != make_config(BASE).hash


def test_what_does_not_influence_the_result_does_not_matter(monkeypatch):
    same = {"report_to": "wandb", "push_to_hub": True, "hub_model_id": "a/b", "dataloader_num_workers": 2}
    assert make_config(change(**{f"training__{k}": v for k, v in same.items()})).hash == make_config(BASE).hash
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert make_config(change(seed=0)).hash != ONE_PROCESS


def test_name_and_output_do_not_matter():
    assert make_config(change(output="x", task__name="y")).hash == make_config(BASE).hash


def test_frozen_and_input_untouched():
    values = change()
    config = make_config(values)
    assert values == BASE
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3
    assert make_config(config.to_dict()) == config


def test_reading_a_configuration_needs_no_torch():
    code = "import sys, tailora.config; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_hash_follows_the_pictures_of_a_data_folder(tmp_path):
    from PIL import Image

    for colour in (0, 9):
        (tmp_path / str(colour) / "cat").mkdir(parents=True)
        Image.new("L", (4, 4), colour).save(tmp_path / str(colour) / "cat" / "one.png")
    values = {"model": "org/m", "task": {"kind": "image-classification"}}
    hashes = []
    for colour in (0, 9):
        values["task"]["train"] = str(tmp_path / str(colour))
        hashes.append(make_config(values).hash)
    assert hashes[0] != hashes[1]
