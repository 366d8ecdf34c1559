"""What a study's folder says about its runs, and ``study.json``, which says it to others."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tailora.artifacts import write_json
from tailora.errors import UserError
from tailora.run_folders import is_done, run_folder, stored
from tailora.studies.attempts import given_up
from tailora.studies.expansion import AXES, Expansion, Run
from tailora.studies.search import Choice

Status = Literal["done", "missing", "failed"]


def status_of(run: Run) -> Status:
    """Return how a run stands: ``failed`` where it has failed so often that it is not tried again unasked."""
    if is_done(run.config):
        return "done"
    return "failed" if given_up(run_folder(run.config)) else "missing"


def relabel(run: Run) -> None:
    """Give a finished run the label that the study has for it now; nothing else of it depends on the label.

    Args:
        run: A finished run.
    """
    place = run_folder(run.config) / "config.json"
    with contextlib.suppress(UserError):
        values = stored(place)
        changed = {"label": run.config.label, "task": run.config.task.name}
        if values is None or not isinstance(values.get("task"), dict):
            return
        if values.get("label", "") != changed["label"] or values["task"].get("name") != changed["task"]:
            write_json(place, values | {"label": changed["label"], "task": values["task"] | {"name": changed["task"]}})


def write_study(expansion: Expansion, choices: Sequence[Choice] = (), runs: Sequence[Run] = ()) -> None:
    """Write ``study.json``: for people and other programs; nothing of ours depends on it.

    Args:
        expansion: The study, expanded.
        choices: The learning rates chosen so far.
        runs: The final runs, as far as they are known.
    """
    study = expansion.study
    listed = [_row(run) for run in (*expansion.search, *runs)]
    axes: dict[str, list[str]] = {axis: [] for axis in AXES}
    for run in (*expansion.search, *runs):
        for axis, label in run.labels.items():
            if label not in axes[axis]:
                axes[axis].append(label)
    content: Mapping[str, Any] = {
        "name": study.name,
        "title": study.title,
        "scale": study.scale,
        "baseline": study.baseline,
        "axes": axes,
        "learning_rates": [choice.to_dict() for choice in choices],
        "runs": listed,
        "study": study.model_dump(mode="json", exclude={"output", "scales"}),
    }
    write_json(study.folder / "study.json", content)


def _row(run: Run) -> dict[str, Any]:
    folder = run_folder(run.config)
    return {"hash": run.config.hash, "role": run.role, **run.labels, "folder": f"runs/{folder.name}"}
