"""Anything a user can put into a configuration or do to a run's files ends in one sentence and status 2."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailora.cli import main
from tailora.config import load_config, make_config
from tailora.errors import UserError
from tailora.runs import execute, run_folder
from tiny_runs import review_config

TIMES = int(os.environ.get("TAILORA_FUZZ", "1"))
"""How many times as many examples as the suite draws; see `make fuzz`."""

KEYS = [
    "model", "task", "recipe", "budget", "placement", "allocation", "seed", "calibration", "training", "output",
    "kind", "train", "evaluation", "text", "label", "max_length", "examples", "batch_size", "learning_rate",
    "max_steps", "num_train_epochs", "report_to", "eval_steps", "early_stopping_patience", "hub_model_id",
]  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.binary(max_size=4), st.dates(),
    st.sampled_from(["causal-lm", "text-classification", "lora", "r=8", "~nobody", "./x", "\0", "\ud800", "x" * 300,
                     "a.txt", ".", "/", "9" * 5000, "1e999", "x.yaml"]),
    st.sampled_from([10**40, -(10**40), float("nan"), 1e308]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
tasks = st.fixed_dictionaries(
    {"kind": st.just("causal-lm") | scalars, "train": st.just("org/data") | scalars},
    optional=dict.fromkeys(("evaluation", "text", "label", "max_length", "validation", "name"), scalars),
)
configs = st.fixed_dictionaries(
    {"model": st.just("org/model") | scalars, "task": tasks | values},
    optional={
        "training": st.dictionaries(st.sampled_from(KEYS), scalars, max_size=3),
        "allocation": st.dictionaries(st.text(max_size=5), values, max_size=2),
        **dict.fromkeys(("recipe", "budget", "placement", "seed", "output"), scalars),
    },
)


def sentence(error):
    text = str(error)
    assert text
    assert "\n" not in text
    text.encode()


@settings(max_examples=100 * TIMES)
@given(configs | values)
def test_values_become_a_configuration_or_a_sentence(values):
    try:
        config = make_config(values)
    except UserError as error:
        sentence(error)
    else:
        # What is accepted has an identity and survives a round trip.
        assert make_config(config.to_dict()).hash == config.hash
        assert run_folder(config).name


@settings(max_examples=100 * TIMES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_file_becomes_a_configuration_or_a_sentence(tmp_path, data):
    words = ["model: a\n", "<<: ", "!!set ", "!!binary ", "&a ", "*a"]
    marks = st.sampled_from([*"{}[]:,-&*!|>?'\"%@#\n \t~", *words])
    kind = data.draw(st.sampled_from(["text", "bytes", "dumped"]))
    path = tmp_path / "run.yaml"
    if kind == "dumped":
        path.write_bytes(yaml.dump(data.draw(configs), allow_unicode=False).encode("utf-8", "surrogatepass"))
    elif kind == "bytes":
        path.write_bytes(data.draw(st.binary(max_size=60)))
    else:
        path.write_text("".join(data.draw(st.lists(marks | st.text(max_size=4), max_size=25))), "utf-8", "replace")
    overrides = data.draw(st.lists(st.text(max_size=12) | st.sampled_from(OVERRIDES), max_size=2))
    try:
        _ = load_config(path, overrides).hash
    except UserError as error:
        sentence(error)


OVERRIDES = [
    "seed=1", "seed=", "=", "a.b.c=1", "task.kind=causal-lm", "training..x=1", ".=1", "seed=[", "seed=!!binary x",
    "model=\0", "model=~nobody/x", "seed=" + "[" * 2000, "seed=" + "9" * 5000, "output=\ud800", "task=&a [*a]",
    "allocation={a: &b [*b]}", "seed=0x10", "seed=1:30", "training.report_to=none", "task.train=" + "x" * 5000,
]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 5000, "a: &a [*a]\n", "a: &a {b: *a}\n", "a: " + "9" * 5000, "a: 2020-13-45", 'a: "\\0"',
     "!!set {a}", 'model: "\\ud800"\n', "a: !!binary '*'", "a: !!python/object:os.system x", "? [a]\n: b",
     "a: !!timestamp x"],
)  # fmt: skip
def test_hostile_yaml(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_config(path)
    sentence(caught.value)


@pytest.fixture(scope="module")
def done_run(tmp_path_factory):
    """A finished tiny run with its configuration file."""
    root = tmp_path_factory.mktemp("fuzz")
    config = review_config(root, recipe="spectral", training={"max_steps": 1, "eval_steps": None})
    folder = execute(config)
    (root / "run.yaml").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    profile = next((root / "runs" / "profiles").iterdir())
    return root, folder, profile


def run_cli(*arguments):
    """Return status, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
            status = 0
        except SystemExit as end:
            status = end.code or 0
    return status, out.getvalue(), err.getvalue()


json_values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=4), st.just([]), st.just({}),
    st.just("\ud800"), st.just(10**30), st.just([[]]), st.just({"a": {"b": None}}),
)  # fmt: skip


def places(value, path=()):
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


@st.composite
def damages(draw, original, kinds):
    """A file's bytes, cut off, overwritten, or with one value changed or removed."""
    structure = ["value", "value", "value", "missing"] if original.startswith(b"{") else []
    kind = draw(st.sampled_from(["cut", "noise", "flip", "gone", *structure, *kinds]))
    if kind == "cut":
        return original[: draw(st.integers(0, len(original) - 1))]
    if kind == "noise":
        at = draw(st.integers(0, len(original)))
        return original[:at] + draw(st.binary(min_size=1, max_size=4)) + original[at:]
    if kind == "flip":
        at = draw(st.integers(0, len(original) - 1))
        return original[:at] + bytes([original[at] ^ draw(st.integers(1, 255))]) + original[at + 1 :]
    if kind in ("gone", "nested", "digits"):
        return {"gone": None, "nested": b"[" * 100_000, "digits": b"9" * 5000}[kind]
    content = json.loads(original)
    path = draw(st.sampled_from(sorted(places(content), key=str)))
    if not path:
        return json.dumps(draw(json_values)).encode()
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    if kind == "missing":
        del holder[path[-1]]
    else:
        holder[path[-1]] = draw(json_values)
    return json.dumps(content).encode()


COMMANDS = {
    "plan.json": ("train", "report", "diff", "diff", "from"),
    "profile.json": ("plan",),
    "profile.safetensors": ("plan",),
    "status.json": ("train", "report"),
    "config.json": ("train", "report", "eval"),
    "adapter/adapter_config.json": ("eval",),
}


@pytest.mark.parametrize("name", list(COMMANDS))
@settings(max_examples=12 * TIMES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_files_end_in_a_sentence(done_run, monkeypatch, name, data):
    root, folder, profile = done_run
    place = (profile if name.startswith("profile.") else folder) / name
    original = place.read_bytes()
    command = data.draw(st.sampled_from(COMMANDS[name]))
    damage = data.draw(damages(original, ("nested", "digits")))
    arguments = {
        "train": ["train", root / "run.yaml"],
        "report": ["report", folder],
        "eval": ["eval", folder],
        "diff": ["plan", "--diff", place, place],
        "from": ["plan", "--from", place],
        "plan": ["plan", "--profile", profile, "--recipe", "spectral", "--budget", "r=1"],
    }[command]
    try:
        place.unlink() if damage is None else place.write_bytes(damage)
        with monkeypatch.context() as patch:
            if command == "train":  # it may say that it is done, or refuse, or begin again; but not train
                patch.setattr("tailora.runs._unlocked", begin)
                patch.setattr("tailora.report.html.write_report", lambda folder: folder)
            status, _, err = run_cli(*arguments)
    finally:
        place.write_bytes(original)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    refused_or_done(status, err)


def refused_or_done(status, err):
    """No traceback, no status 1, and what is refused is refused in one sentence."""
    assert "Traceback" not in err
    assert status in (0, 2), err
    if status:
        lines = [line for line in err.splitlines() if line.startswith(("tailora: ", "Error: "))]
        assert len(lines) == 1, err


def begin(*args, **kwargs):
    raise UserError("here the run would begin again")


numbers = st.integers().map(str) | st.floats().map(str) | st.sampled_from(["9" * 400, "1e999", "0x8", "1_0", "\u0663"])
budgets = st.one_of(
    numbers, st.text(max_size=8), numbers.map("r={}".format), st.tuples(numbers, st.sampled_from("%kMGB")).map("".join),
    st.sampled_from(["5 apples", "12MB@bf16", "12MB@", "r=", "%", "1e99GB", "--", "r=" + "9" * 5000, "9" * 5000]),
)  # fmt: skip
terms = st.one_of(
    st.text(max_size=6), st.sampled_from(["ffn", "attention", "all-linear", "!ffn", "&", "!", "query-value"]),
    st.tuples(
        st.sampled_from(["upper:", "lower:", "layers:", "role:", "regex:", "stack:", "!regex:"]),
        numbers | st.text(max_size=6) | st.sampled_from(["0-1", "1-0", "(", "[a", "(?<a", "*", "ffn.up", "(a+)+$"]),
    ).map("".join),
)  # fmt: skip
VALUES = {
    "--recipe": st.text(max_size=8)
    | st.sampled_from(["spectral", "random-rank", "explicit", ".yaml", "a\0.yaml", "/", "~.yml"]),
    "--budget": budgets,
    "--placement": st.lists(terms, max_size=3).map("&".join),
    "--r-min": numbers,
    "--r-max": numbers | numbers.map("{}x".format) | st.sampled_from(["4x", "x", "0x", "many", "9" * 5000 + "x"]),
    "--multiple": numbers,
    "--signal": st.sampled_from(["fisher", "gradient_spectrum", "fischer", ""]) | st.text(max_size=4),
    "--ranks": st.text(max_size=8) | st.sampled_from(["/", ".", "\0", "x" * 300]),
    "--seed": numbers,
    "--emit": st.sampled_from(["peft", "trl", "axolotl", "unsloth", "x", ""]),
    "--task-type": st.sampled_from(["CAUSAL_LM", "SEQ_CLS", "x", ""]),
    "--from": st.text(max_size=6) | st.sampled_from(["/", "\0", "x" * 300]),
    "--profile": st.text(max_size=6) | st.sampled_from(["/", "\0", "x" * 300]),
}


@settings(max_examples=60 * TIMES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_values_of_plan_end_in_a_plan_or_a_sentence(done_run, tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    profile = done_run[2]
    names = data.draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=3, unique=True))
    words = [word for name in names for word in (name, data.draw(VALUES[name], label=name))]
    status, _, err = run_cli("plan", "--profile", profile, *words)
    refused_or_done(status, err)
    assert list(tmp_path.iterdir()) == []
