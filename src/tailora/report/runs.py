"""Run folders as records; what cannot be read is listed as a problem and never stops a report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailora.artifacts import read_json
from tailora.errors import UserError
from tailora.report.liveness import worker
from tailora.report.records import Problem, RunRecord, Runs, finite

__all__ = ["MAX_DEPTH", "Problem", "RunRecord", "Runs", "load_runs"]

MAX_DEPTH = 3
"""How many folders below the given path a run may lie."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_WANTED = "a run folder, a folder that holds some, or, to tailora report, a profile's folder (with profile.json)"
_SIDE_FILES = ("plan.json", "scores.json", "history.jsonl", "predictions.jsonl", "timings.json", "counts.json")


def load_runs(path: str | Path) -> Runs:
    """Read every run at or below ``path``.

    Args:
        path: One run folder, or a folder that holds run folders at most three levels down.

    Returns:
        A list of the finished runs, ordered by task, model, budget, recipe and seed; its ``problems`` say what was
        left out and why.

    Raises:
        UserError: The path does not exist, is a file, or holds no run at all.
    """
    root = Path(path)
    if not root.exists():
        raise UserError(f"folder {str(root)!r} does not exist; give {_WANTED}")
    if not root.is_dir():
        raise UserError(f"{str(root)!r} is a file; give {_WANTED}")
    problems: list[Problem] = []
    folders = _find_folders(root, 0, problems)
    if not folders:
        raise UserError(
            f"no run found in {str(root)!r} or {MAX_DEPTH} levels below it (a run folder holds config.json and "
            f"status.json){_profile_hint(root)}; run 'tailora train' first or give another folder"
        )
    records = [record for folder in folders if (record := _load_one(folder, problems)) is not None]
    records = _without_copies(records, problems)
    records.sort(key=lambda run: (run.task, run.model, run.budget, run.recipe, run.seed, run.hash))
    return Runs(records, problems, root)


def _profile_hint(root: Path) -> str:
    """Say how a folder without runs stands as a profile, which ``tailora report`` shows as well."""
    if (root / "profile.json").is_file():
        return "; it holds a profile, which tailora report shows"
    if (root / "profile.safetensors").is_file():
        return "; it holds profile.safetensors without the profile.json that makes it a profile's folder"
    return " and no profile in it (profile.json)"


def _find_folders(folder: Path, depth: int, problems: list[Problem]) -> list[Path]:
    """Collect run folders without looking inside one: adapters and checkpoints lie there."""
    if _is_run(folder):
        return [folder]
    if depth >= MAX_DEPTH:
        return []
    try:
        children = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        problems.append(Problem(folder, f"the folder cannot be listed: {error.strerror}"))
        return []
    return [found for child in children for found in _find_folders(child, depth + 1, problems)]


def _is_run(folder: Path) -> bool:
    """Tell a run folder, also a half-written one, from a model folder, which has a config.json as well."""
    try:
        if (folder / "status.json").is_file():
            return True
        if not (folder / "config.json").is_file():
            return False
        if any((folder / name).is_file() for name in _SIDE_FILES):
            return True
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "recipe" in config


def _load_one(folder: Path, problems: list[Problem]) -> RunRecord | None:
    """Read one folder; problems are appended and ``None`` returned when it cannot be used."""
    status, config = _quiet_object(folder / "status.json"), _quiet_object(folder / "config.json")
    known = {"path": folder, "hash": str(status.get("hash") or ""), "config": config}
    state = str(status.get("status") or "")
    if not state and (who := worker(folder)):
        problems.append(
            Problem(reason=f"still at work ({who}); report again when it is done", status="running", **known)
        )
        return None
    if state != "done":
        state = state or "unfinished"
        problems.append(Problem(reason=_unfinished_reason(folder, state, status), status=state, **known))
        return None
    try:
        needed = {name: _object(folder / f"{name}.json") for name in ("config", "plan", "scores")}
        _check(needed["plan"], needed["scores"])
    except UserError as error:
        problems.append(Problem(reason=str(error), **known))
        return None
    extra: dict[str, Any] = {}
    for name, read in _OPTIONAL.items():
        suffix = "jsonl" if name in ("history", "predictions") else "json"
        try:
            extra[name] = read(folder / f"{name}.{suffix}")
        except UserError as error:
            problems.append(Problem(reason=f"kept without its {name}: {error}", status="done", left_out=False, **known))
    return RunRecord(path=folder, status=status, **needed, **extra)


def _unfinished_reason(folder: Path, state: str, status: Mapping[str, Any]) -> str:
    """Say in one clause why a folder is not a finished run."""
    if status.get("error"):
        return f"{state}: {status['error']}"
    if not (folder / "status.json").is_file():
        return "no status.json: the run was cut off; run the same command again to continue it"
    if state == "unfinished":
        return "status.json cannot be read or names no status"
    return f"status is {state!r}, not 'done'"


def _quiet_object(path: Path) -> dict[str, Any]:
    try:
        return _object(path)
    except UserError:
        return {}


def _object(path: Path) -> dict[str, Any]:
    """Read a JSON object, naming the file by its name alone: the folder stands beside the problem."""
    try:
        value = read_json(path, path.name)
    except UserError as error:
        raise UserError(str(error).replace(repr(str(path)), "in this folder", 1)) from None
    except RecursionError:
        raise UserError(f"{path.name} is nested too deeply to be read") from None
    if not isinstance(value, dict):
        raise UserError(f"{path.name} holds a {type(value).__name__} where an object is expected")
    return _printable(value)


def _printable(value: Any) -> Any:
    """Replace control characters and lone surrogates, which JSON can spell and no page or SVG may hold."""
    if isinstance(value, str):
        return value if value.isprintable() else _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, dict):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, list) else value


def _optional_object(path: Path) -> dict[str, Any]:
    return _object(path) if path.exists() else {}


def _signals(path: Path) -> dict[str, dict[str, float]]:
    """Read the signals; values that are no finite number are dropped."""
    table: dict[str, dict[str, float]] = {}
    for name, values in _optional_object(path).items():
        if isinstance(values, dict):
            table[name] = {key: number for key, raw in values.items() if (number := finite(raw)) is not None}
    return table


def _lines(path: Path) -> tuple[dict[str, Any], ...]:
    """Read JSON lines; a broken line is an error, since half a prediction file would shift the statistics."""
    if not path.exists():
        return ()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name} cannot be read ({type(error).__name__})") from None
    rows = []
    # Not splitlines(): it also cuts at U+2028 and its like, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{path.name} line {number} is not valid JSON; was it cut off?") from None
        if not isinstance(row, dict):
            raise UserError(f"{path.name} line {number} is not an object")
        rows.append(row)
    return tuple(rows)


_OPTIONAL = {
    "signals": _signals,
    "history": _lines,
    "predictions": _lines,
    "timings": _optional_object,
    "counts": _optional_object,
    "environment": _optional_object,
}


def _check(plan: Mapping[str, Any], scores: Mapping[str, Any]) -> None:
    """Refuse a plan or scores that the tables could not show truthfully."""
    targets = plan.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, dict) for target in targets):
        raise UserError("plan.json has no list of targets")
    for target in targets:
        missing = [key for key in ("name", "role", "rank") if key not in target]
        if missing:
            raise UserError(f"plan.json has a target without {missing[0]!r}")
        depth = target.get("depth")
        if finite(target["rank"]) is None or (depth is not None and finite(depth) is None):
            raise UserError(f"plan.json gives target {str(target['name'])!r} a rank or depth that is not a number")
        if not isinstance(target.get("shape", []), list):
            raise UserError(f"plan.json gives target {str(target['name'])!r} a shape that is not a list")
    primary = scores.get("primary")
    if not isinstance(primary, str) or primary not in scores:
        raise UserError("scores.json does not hold the primary score that it names")
    if finite(scores[primary]) is None:
        raise UserError(f"the {primary} is {scores[primary]!r}, not a finite number: the run probably diverged")


def _without_copies(records: list[RunRecord], problems: list[Problem]) -> list[RunRecord]:
    """Keep the first of several folders that hold the same run: a copy must not count as another seed."""
    seen: dict[str, RunRecord] = {}
    for run in records:
        if run.status.get("hash") and run.hash in seen:
            reason = f"a copy of the run in {seen[run.hash].path.name!r} (same hash)"
            problems.append(Problem(run.path, reason, status="copy", hash=run.hash, config=run.config))
        else:
            seen[run.hash if run.status.get("hash") else str(run.path)] = run
    return list(seen.values())
