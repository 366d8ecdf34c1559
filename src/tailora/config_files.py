"""Overrides and paths of a configuration, and naming files and folders by what they contain."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tailora.errors import ConfigError
from tailora.yaml_files import check_plain, read_yaml_text

DATA_SUFFIXES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".parquet", ".npz"})
"""File endings that are read as local data."""

# What a model's or a data set's folder is made of; pictures, logs and caches beside it do not count.
_FINGERPRINTED = DATA_SUFFIXES | {".arrow", ".bin", ".jinja", ".model", ".py", ".safetensors"}
_PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
_CHUNK = 1 << 20
_PACKAGE = "package:"


def is_recipe_file(recipe: str) -> bool:
    """Tell whether ``recipe`` is written as the path of a YAML file rather than as a name."""
    return recipe.endswith((".yaml", ".yml"))


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``values`` with ``key=value`` overrides applied.

    Args:
        values: Nested mapping; not changed.
        overrides: ``key=value`` strings; the value is read as YAML, paths are relative to the current folder.

    Returns:
        A new nested mapping.

    Raises:
        ConfigError: An override has no ``=``, or goes through something that is no section.
    """
    result = copied(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"override {override!r} is not of the form key=value; write training.learning_rate=1e-3")
        value = read_yaml_text(text, f"override {override!r}")
        check_plain({key: value}, f"override {override!a}")
        *sections, last = key.split(".")
        fresh: dict[str, Any] = {}
        place, fresh_place = result, fresh
        for section in sections:
            inner = place.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"override {override!r} goes through {section!r}, which is a value and no section")
            place, fresh_place = inner, fresh_place.setdefault(section, {})
        fresh_place[last] = value
        resolved = resolve_paths(fresh, Path.cwd())
        for section in sections:
            resolved = resolved[section]
        place[last] = resolved[last]
    return result


def resolve_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return ``values`` with the known path keys made absolute.

    ``model``, ``task.train`` and ``task.evaluation`` may also be hub ids: they are taken for a path when they start
    with ``.``, ``/`` or ``~``, end like a data file, or exist.  ``model: package:NAME/FOLDER`` is a folder inside an
    installed Python package.

    Args:
        values: Nested mapping; not changed.
        folder: What relative paths are relative to.

    Returns:
        A new nested mapping.
    """
    result = copied(values)

    def resolve(section: dict[str, Any], key: str, *, always: bool = False) -> None:
        value = section.get(key)
        if isinstance(value, str) and value:
            try:
                path = Path(value).expanduser()
                named = value[0] in "./~" or path.suffix.lower() in DATA_SUFFIXES
                if always or named or (folder / path).exists():
                    section[key] = str((folder / path).resolve())
            except (OSError, RuntimeError, ValueError) as error:
                # A name too long, a loop of links, the home of somebody unknown.
                reason = getattr(error, "strerror", None) or str(error)
                raise ConfigError(f"{key}={value[:80]!r} cannot be used as a path: {reason}; correct it") from None

    if isinstance(result.get("model"), str):
        result["model"] = find_model(result["model"])
    resolve(result, "model")
    resolve(result, "output", always=True)
    if isinstance(result.get("recipe"), str) and is_recipe_file(result["recipe"]):
        resolve(result, "recipe", always=True)
    if isinstance(result.get("task"), dict):
        resolve(result["task"], "train")
        resolve(result["task"], "evaluation")
    if isinstance(result.get("harness"), dict):
        resolve(result["harness"], "include_path", always=True)
        resolve(result["harness"], "data_root", always=True)
    return result


def find_model(model: str) -> str:
    """Return the folder that ``package:NAME/FOLDER`` stands for; another model stands for itself.

    Args:
        model: Hub id, folder, file, or ``package:`` with an installed Python package and what is inside it.

    Returns:
        The model; of a package an absolute path.

    Raises:
        ConfigError: There is no such package, or no such folder in it.
    """
    if not model.startswith(_PACKAGE):
        return model
    name, _, inner = model.removeprefix(_PACKAGE).partition("/")
    try:
        found = find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):
        found = None  # it is loaded and hides where from, as __main__ does
    places = (found.submodule_search_locations or ()) if found else ()
    for place in places:
        if (path := Path(place, inner)).exists():
            return str(path.resolve())
    if places:
        raise ConfigError(f"model={model[:80]!r}: the package {name!r} has no folder {inner!r}; correct it")
    raise ConfigError(
        f"model={model[:80]!r}: there is no Python package {name!r} here; install it, or give a hub id or a folder"
    )


def copied(value: Any) -> Any:
    """Copy nested mappings and lists, so that nobody writes into what was given.

    Args:
        value: A plain value.

    Returns:
        An equal one that shares no mapping and no list.
    """
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list | tuple) else value


def fingerprint_path(name: str, *, pictures: bool = False) -> str:
    """Return what identifies the contents behind a path; a hub id stands for itself.

    A file counts with all its bytes.  A folder (a model) counts with its small files and, of each large one, the size
    and the first and last MiB: enough to tell two checkpoints apart without reading hundreds of gigabytes.

    Args:
        name: A path, or a hub id.
        pictures: Whether image files in a folder count: they are a data set's contents, but ornaments beside a model.

    Returns:
        ``sha256:...`` for what exists on this machine, ``name`` otherwise.
    """
    try:
        return _fingerprint(Path(name), _FINGERPRINTED | (_PICTURES if pictures else frozenset())) or name
    except OSError as error:
        raise ConfigError(f"{name[:80]!r} cannot be read: {error.strerror}; check its name and rights") from None


def world_size() -> int:
    """Return how many processes train together; ``accelerate launch`` and ``torchrun`` say so in the environment."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdigit() else 1


def _fingerprint(path: Path, suffixes: frozenset[str]) -> str | None:
    """Return the hash of a file or folder, ``None`` where there is neither."""
    if path.is_file():
        return _file_hash(str(path), path.stat().st_size, path.stat().st_mtime_ns, False)
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix.lower() in suffixes:
                stat = file.stat()
                digest.update(file.relative_to(path).as_posix().encode() + b"\0")
                digest.update(_file_hash(str(file), stat.st_size, stat.st_mtime_ns, True).encode())
        return f"sha256:{digest.hexdigest()}"
    return None


@functools.lru_cache(maxsize=256)
def _file_hash(path: str, size: int, modified: int, ends_only: bool) -> str:
    # ``modified`` is only a cache key: a file that changed is read again.
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as stream:
        if ends_only and size > 4 * _CHUNK:
            digest.update(stream.read(_CHUNK))
            stream.seek(-_CHUNK, 2)
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"
