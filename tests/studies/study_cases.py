"""Studies of tiny runs, as files."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tailora.studies.expansion import Expansion, expand
from tailora.studies.files import load_study
from tiny_runs import review_config


def base(folder: Path, **training) -> dict:
    """The configuration that tiny runs share, without what a study decides."""
    values = review_config(folder).model_dump(mode="json", exclude_unset=True)
    for key in ("output", "seed", "label", "budget"):
        values.pop(key, None)
    values["training"] |= {"max_steps": 6, "save_steps": 2, "logging_steps": 2, "use_cpu": True} | training
    values["training"].pop("eval_steps", None)
    values["task"]["name"] = "reviews"
    return values


def study_file(folder: Path, *, training: dict | None = None, **keys) -> Path:
    """Write a study of two recipes and one seed; ``keys`` replace its keys."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "base": base(folder, **(training or {})),
        "recipes": ["lora", "spectral"],
        "budgets": ["r=1"],
        "seeds": 1,
        "learning_rate": 0.01,
        "output": "out",
    }
    path = folder / "study.yaml"
    kept = {key: value for key, value in (values | keys).items() if value is not None}
    path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    return path


def expanded(folder: Path, *overrides: str, **keys) -> Expansion:
    return expand(load_study(study_file(folder, **keys), overrides))


def finish(run, score: float, *, loss: float = 1.0, higher: bool = True) -> None:
    """Write what a finished run leaves behind, as far as studies read it."""
    from tailora.run_folders import run_folder, write_status

    folder = run_folder(run.config)
    folder.mkdir(parents=True, exist_ok=True)
    scores = {"primary": "accuracy", "accuracy": score, "loss": loss, "higher_is_better": higher}
    (folder / "scores.json").write_text(json.dumps(scores))
    timings = {"train_s": 2.0, "evaluate_s": 1.0, "total_s": 4.0, "resumed_from_step": 0}
    (folder / "timings.json").write_text(json.dumps(timings))
    (folder / "config.json").write_text(json.dumps(run.config.to_dict()))
    write_status(folder, run.config, "done", None)
