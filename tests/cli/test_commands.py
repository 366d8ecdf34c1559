"""The command line on real input and on wrong input: data on stdout, one sentence and status 2 otherwise."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import models
import tailora
from tailora.cli import main
from tailora.plans import Plan
from tailora.profiles import Profile
from tailora.recipes import recipe_names


@pytest.fixture
def run(capsys):
    """Return a function that runs a command and gives (status, stdout, stderr)."""

    def call(*arguments):
        capsys.readouterr()
        try:
            main([str(a) for a in arguments])
            status = 0
        except SystemExit as end:
            status = end.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def profile_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    return tailora.profile(models.build("llama"), models.batches("llama")).save(folder / "p")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "gpt2"
    models.build("gpt2").config.save_pretrained(folder)
    return folder


def test_inspect_shows_targets(run, model_folder):
    status, out, err = run("inspect", model_folder)
    assert (status, err) == (0, "")
    assert "attention.qkv" in out
    assert "GPT2" in out
    status, out, _ = run("inspect", model_folder, "--placement", "ffn", "--json")
    shown = json.loads(out)
    assert {t["role"] for t in shown["targets"]} == {"ffn.up", "ffn.down"}
    assert shown["cost_per_rank"] == 2 * 2 * (16 + 64)
    status, out, _ = run("inspect", model_folder, "--all")
    assert out.count("mlp.c_proj") == 2


def test_plan_from_a_profile(run, profile_folder, tmp_path):
    file = tmp_path / "plan.json"
    status, out, err = run("plan", "--profile", profile_folder, "-r", "spectral", "-b", "r=2", "-o", file)
    assert status == 0
    assert f"written to {file}" in err
    plan = Plan.load(file)
    assert f"{plan.total_params:,} of {plan.budget_params:,} parameters" in " ".join(out.split())
    status, out, _ = run("plan", "--profile", profile_folder, "-r", "spectral", "-b", "r=2", "--json")
    assert json.loads(out) == plan.to_dict()
    assert plan.provenance["profile"] == Profile.load(profile_folder).hash


def test_plan_from_a_profile_loads_nothing_heavy(profile_folder):
    words = ["plan", "--profile", str(profile_folder), "-r", "spectral", "-b", "r=2"]
    code = (
        "import sys\nfrom tailora.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'trl', 'datasets', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plan_from_a_model_without_weights(run, model_folder):
    status, out, _ = run("plan", "--model", model_folder, "--budget", "r=2", "--json")
    assert status == 0
    assert set(Plan.from_dict(json.loads(out)).ranks.values()) == {2}


def test_plan_diff(run, profile_folder, tmp_path):
    one, two = tmp_path / "a.json", tmp_path / "b.json"
    run("plan", "--profile", profile_folder, "-b", "r=2", "-o", one)
    run("plan", "--profile", profile_folder, "-b", "r=2", "-r", "attention-only", "-o", two)
    status, out, _ = run("plan", "--diff", one, two, "--json")
    changes = json.loads(out)["changes"]
    assert (status, len(changes)) == (0, 14)
    status, out, _ = run("plan", "--diff", one, two)
    assert "14 targets differ" in out
    status, out, _ = run("plan", "--diff", one, one)
    assert "no rank differs" in out


def test_recipes_are_listed_with_citations(run):
    status, out, _ = run("recipes", "--json")
    assert [recipe["name"] for recipe in json.loads(out)] == recipe_names()
    status, out, _ = run("recipes")
    assert status == 0
    assert all(name in out for name in recipe_names())
    status, out, _ = run("recipes", "spectral")
    assert "name: spectral" in out


def test_env_names_versions(run):
    _, out, _ = run("env", "--json")
    assert json.loads(out)["packages"]["tailora"] == tailora.__version__
    assert run("--version")[1] == f"tailora {tailora.__version__}\n"


@pytest.mark.parametrize("arguments", [["plann"], ["plan", "--bugdet", "r=2"], ["inspect"], ["demo", "--seeds", "0"]])
def test_wrong_usage_is_status_2(run, arguments):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert "Error" in err


def test_debug_shows_the_traceback(profile_folder):
    command = [sys.executable, "-m", "tailora", "--debug", "plan", "--profile", str(profile_folder), "-b", "r=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "BudgetError" in done.stderr


def test_profile_of_a_real_model_then_plans_from_it(run, stories260k, data_root, tmp_path):
    text = data_root / "text" / "tinyshakespeare.txt"
    folder = tmp_path / "profile"
    status, out, err = run(
        "profile", stories260k, "--data", text, "-o", folder, "--examples", "8", "--max-length", "64", "--json"
    )
    assert status == 0, err
    meta = json.loads(out)["meta"]
    assert meta["examples"] == 8
    assert 4.0 < meta["mean_loss"] < 5.5
    for recipe in ("lora", "fim-lora", "spectral"):
        status, out, err = run("plan", "--profile", folder, "--recipe", recipe, "--budget", "r=2", "--json")
        assert status == 0, err
        assert json.loads(out)["total_params"] <= 11_560
