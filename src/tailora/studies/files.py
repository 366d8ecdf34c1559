"""Reading study files: includes, scales, overrides, variables and paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tailora.config_files import apply_overrides, is_recipe_file, resolve_paths
from tailora.errors import ConfigError, did_you_mean
from tailora.studies.definition import Study, make_study
from tailora.studies.layers import laid_over, substituted
from tailora.yaml_files import check_plain, read_yaml

_AXES = {"tasks": None, "models": "model", "recipes": "recipe", "budgets": "budget", "runs": None}
"""Axis to the key that a bare string stands for; ``None`` where entries are mappings."""
_DEPTH = 8


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study.

    Paths in a file are relative to that file, those in overrides to the current folder.

    Args:
        path: The YAML file.
        overrides: ``key=value`` strings, such as ``scale=small`` or ``base.training.max_steps=10``.

    Returns:
        The checked study, with its scale, variables and paths resolved.

    Raises:
        ConfigError: A file cannot be read, or a key or value is wrong.
    """
    path = Path(path)
    where = str(path)
    layers = _read(path, ())
    merged: dict[str, Any] = {}
    for values, _ in layers:
        merged = laid_over(merged, values)
    given = apply_overrides({}, overrides)
    # apply_overrides takes "output" and "model" for paths of the current folder already.
    scale = given.get("scale", merged.get("scale", "full"))
    scaled = [(_scale(values, scale), folder) for values, folder in layers]
    if scale != "full" and all(values is None for values, _ in scaled):
        known = sorted({name for values, _ in layers for name in values.get("scales") or {}} | {"full"})
        hint = did_you_mean(str(scale), known) or ";"
        raise ConfigError(f"{where}: scale={scale!r} is no scale of this study{hint} known: {', '.join(known)}")
    stack = [*layers, *((values, folder) for values, folder in scaled if values is not None), (given, Path.cwd())]

    variables: dict[str, str] = {}
    for values, _ in stack:
        held = values.get("variables") or {}
        if not isinstance(held, dict) or not all(isinstance(value, str | int | float) for value in held.values()):
            raise ConfigError(f"{where}: variables must be names with one text each, such as {{data: ../data}}")
        variables |= {key: str(value) for key, value in held.items()}
    merged = {}
    for values, folder in stack:
        own = {key: value for key, value in values.items() if key not in ("variables", "scales", "include")}
        merged = laid_over(merged, _resolved(substituted(own, variables, where), folder, where))
    merged |= {"scale": scale, "variables": variables}
    merged.setdefault("name", path.stem)
    merged.setdefault("output", str(path.resolve().parent / "studies" / str(merged["name"])))
    return make_study(merged, where)


def _read(path: Path, above: tuple[Path, ...]) -> list[tuple[dict[str, Any], Path]]:
    """Return the values of a file after those of the files that it includes, each with its folder."""
    path = path.resolve()
    if path in above or len(above) >= _DEPTH:
        raise ConfigError(f"study {str(above[0])!r} includes {str(path)!r} again and again; remove an include")
    values = read_yaml(path, "study", "recipes: [lora, spectral]")
    # A file that nobody includes is checked as a whole; this sees a misspelt key of an included one as well.
    unknown = next((key for key in values if key not in Study.model_fields), None)
    if unknown is not None:
        known = sorted(Study.model_fields)
        hint = did_you_mean(unknown, known) or f"; known: {', '.join(known)}"
        raise ConfigError(f"{path}: unknown key {unknown!r}{hint}")
    names = values.get("include") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: include must be a list of file names, such as [common.yaml]")
    result: list[tuple[dict[str, Any], Path]] = []
    for name in names:
        result += _read(path.parent / Path(name).expanduser(), (*above, path))
    return [*result, (values, path.parent)]


def _scale(values: dict[str, Any], scale: Any) -> dict[str, Any] | None:
    """Return what one file says about a scale."""
    scales = values.get("scales")
    found = scales.get(scale) if isinstance(scales, dict) and isinstance(scale, str) else None
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"scales.{scale} must be a section with keys of a study; correct it")
    return found


def _resolved(values: dict[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Return one layer with its paths made absolute and its entries brought into one form."""
    result = dict(values)
    if isinstance(result.get("output"), str):
        result["output"] = str((folder / Path(result["output"]).expanduser()).resolve())
    if isinstance(result.get("base"), dict):
        result["base"] = resolve_paths(result["base"], folder)
    for axis, key in _AXES.items():
        if isinstance(result.get(axis), list):
            result[axis] = [_entry(item, axis, key, folder, where) for item in result[axis]]
    return result


def _entry(item: Any, axis: str, key: str | None, folder: Path, where: str) -> Any:
    """Return an entry as a partial configuration with absolute paths; what is wrong with it is found later."""
    if isinstance(item, int | float) and not isinstance(item, bool) and key == "budget":
        item = str(item)
    if isinstance(item, str):
        if key is None:
            raise ConfigError(f"{where}: {axis} holds {item!r}, but its entries are partial configurations")
        if not item:
            raise ConfigError(f"{where}: {axis} holds an empty name; remove it")
        label = item.rstrip("/").rpartition("/")[2] if axis == "models" or is_recipe_file(item) else item
        name = label.rpartition(".")[0] if is_recipe_file(label) else label
        return {"name": name} | resolve_paths({key: item}, folder)
    if not isinstance(item, dict):
        return item
    inner = {name: value for name, value in item.items() if name != "include"}
    below: dict[str, Any] = {}
    if "include" in item:
        if axis != "tasks" or not isinstance(item["include"], str):
            raise ConfigError(f"{where}: include={item['include']!r} in {axis} must be one file, in tasks only")
        place = folder / Path(item["include"]).expanduser()
        below = resolve_paths(read_yaml(place, "task"), place.resolve().parent)
    check_plain(inner, where)
    return laid_over(below, resolve_paths(inner, folder))


__all__ = ["load_study"]
