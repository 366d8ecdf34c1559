"""The Newton signal on the command line, in runs, and on real models."""

from __future__ import annotations

import json

import pytest

from tailora.cli import main
from tailora.errors import UserError
from tailora.plans import Plan
from tailora.profiles import Profile
from tailora.runs import execute, is_done, measure_profile
from tiny_runs import review_config, save_llama, save_text, text_config

SIGNAL = ("newton_spectrum",)


def test_on_the_command_line(tmp_path, capsys):
    model, text = save_llama(tmp_path / "llama"), save_text(tmp_path, lines=20)
    words = ["profile", model, "--data", text, "--max-length", 8, "--examples", 8, "--signals", "newton_spectrum"]
    with pytest.raises(SystemExit) as end:
        main([*map(str, words), "-o", str(tmp_path / "p"), "--json"])
    assert not end.value.code
    meta = json.loads(capsys.readouterr().out)["meta"]
    assert (meta["examples"], meta["newton"]["iterations"], meta["loss"]) == (8, 16, "causal-lm")
    assert Profile.load(tmp_path / "p").signals["newton_spectrum"].any(axis=1).all()
    with pytest.raises(SystemExit) as end:
        main([*map(str, words), "-o", str(tmp_path / "q"), "--keep-sums"])
    assert end.value.code == 2
    assert "keep_sums=True does not go with signal 'newton_spectrum'" in capsys.readouterr().err
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("make", [review_config, text_config])
def test_a_run(make, tmp_path):
    config = make(tmp_path, recipe="newton", allocation={"confidence": 1}, training={"max_steps": 2, "save_steps": 2})
    folder = execute(config)
    plan = Plan.load(folder / "plan.json")
    assert plan.recipe.signals == (*SIGNAL, "newton_agreement")
    assert plan.total_params <= plan.budget_params
    assert len(set(plan.ranks.values())) > 1
    assert is_done(config)


def test_refused_before_a_model_is_loaded(tmp_path):
    config = review_config(tmp_path)
    (tmp_path / "bert" / "config.json").unlink()
    with pytest.raises(UserError, match="until=0.5 does not go with signal 'newton_spectrum'"):
        measure_profile(config, ("fisher", *SIGNAL), until=0.5)


def test_real_language_model(stories260k, data_root, tmp_path):
    text = data_root / "text" / "tinyshakespeare.txt"
    config = text_config(
        tmp_path,
        model=str(stories260k),
        task={"train": str(text), "max_length": 64, "train_examples": 64, "eval_examples": 8},
        calibration={"examples": 4, "batch_size": 2},
    )
    found = measure_profile(config, SIGNAL, options={"newton_iterations": 4})
    decreases = found.meta["newton"]["decrease_by_iteration"]
    assert 0 < decreases[0] < decreases[-1]
    assert found.signals["newton_spectrum"].any(axis=1).all()
