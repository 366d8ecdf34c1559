"""Reading YAML strictly, and naming files and folders by what they contain."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tailora.errors import ConfigError

DATA_SUFFIXES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".parquet", ".npz"})
"""File endings that are read as local data."""

# What a model's or a data set's folder is made of; pictures, logs and caches beside it do not count.
_FINGERPRINTED = DATA_SUFFIXES | {".arrow", ".bin", ".jinja", ".model", ".py", ".safetensors"}
_CHUNK = 1 << 20
_DEPTH = 12


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with 1.2's floats (``1e-3`` is a number) and no silent duplicates."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.MarkedYAMLError(problem=f"key {key!r} is not text", problem_mark=key_node.start_mark)
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml_text(text: str, where: str) -> Any:
    """Decode YAML text.

    Args:
        text: The YAML.
        where: What the text is, for messages.

    Returns:
        The decoded value.

    Raises:
        ConfigError: The text is no YAML, or a key is given twice.
    """
    try:
        # _Loader derives from SafeLoader: it builds plain values only.
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ConfigError(f"{where} is not valid YAML{line}: {error.problem}; correct it") from None
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply to be a configuration; is it the right file?") from None
    # Not only yaml.YAMLError: its constructors of dates, numbers and bytes let Python's own errors through.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{where} is not valid YAML: {first}; correct it") from None


def check_plain(value: Any, where: str, key: str = "", depth: int = 0) -> None:
    """Refuse what no configuration can mean, wherever it stands: bytes, dates, NUL, references to itself.

    Args:
        value: The nested value.
        where: What it came from, for messages.
        key: Its dotted key, for messages.
        depth: How deep it lies.

    Raises:
        ConfigError: Something in it is neither text, number, true, false, null, list nor mapping.
    """
    if depth > _DEPTH:
        raise ConfigError(f"{where}: {key.split('.')[0]!r} is nested more than {_DEPTH} deep or contains itself")
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str) or not name.isprintable():
                raise ConfigError(f"{where}: key {name!a:.60} is no name of a setting; correct it")
            check_plain(inner, where, f"{key}.{name}".lstrip("."), depth + 1)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            check_plain(inner, where, f"{key}.{number}", depth + 1)
    elif isinstance(value, str):
        if any((ord(letter) < 32 and letter not in "\t\n") or 0xD800 <= ord(letter) < 0xE000 for letter in value):
            raise ConfigError(
                f"{where}: {key!a} holds a control character or half a letter ({value[:40]!a}); remove it"
            )
    elif value is not None and not isinstance(value, bool | int | float):
        kind = type(value).__name__
        raise ConfigError(f"{where}: {key}={value!s:.40} is a {kind}, which no setting takes; write it in quotes")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: The file.

    Returns:
        The mapping.

    Raises:
        ConfigError: The file is missing, a folder, unreadable, or holds something else.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"configuration {str(path)!r} does not exist; check the path") from None
    except IsADirectoryError:
        raise ConfigError(f"configuration {str(path)!r} is a folder; give the YAML file inside it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"configuration {str(path)!r} is not UTF-8 text (byte {error.start}); is it the right file?"
        ) from None
    except OSError as error:
        raise ConfigError(f"configuration {str(path)!r} cannot be read: {error.strerror}") from None
    values = read_yaml_text(text, f"configuration {str(path)!r}")
    check_plain(values, f"configuration {str(path)!r}")
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise ConfigError(f"configuration {str(path)!r} {found}; it must be a mapping such as 'model: ...'")
    return values


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
    result = _copy(values)
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
    with ``.``, ``/`` or ``~``, end like a data file, or exist.

    Args:
        values: Nested mapping; not changed.
        folder: What relative paths are relative to.

    Returns:
        A new nested mapping.
    """
    result = _copy(values)

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

    resolve(result, "model")
    resolve(result, "output", always=True)
    if isinstance(result.get("recipe"), str) and is_recipe_file(result["recipe"]):
        resolve(result, "recipe", always=True)
    if isinstance(result.get("task"), dict):
        resolve(result["task"], "train")
        resolve(result["task"], "evaluation")
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return list(value) if isinstance(value, list) else value


def fingerprint_path(name: str) -> str:
    """Return what identifies the contents behind a path; a hub id stands for itself.

    A file counts with all its bytes.  A folder (a model) counts with its small files and, of each large one, the size
    and the first and last MiB: enough to tell two checkpoints apart without reading hundreds of gigabytes.

    Args:
        name: A path, or a hub id.

    Returns:
        ``sha256:...`` for what exists on this machine, ``name`` otherwise.
    """
    try:
        return _fingerprint(Path(name)) or name
    except OSError as error:
        raise ConfigError(f"{name[:80]!r} cannot be read: {error.strerror}; check its name and rights") from None


def world_size() -> int:
    """Return how many processes train together; ``accelerate launch`` and ``torchrun`` say so in the environment."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdigit() else 1


def _fingerprint(path: Path) -> str | None:
    """Return the hash of a file or folder, ``None`` where there is neither."""
    if path.is_file():
        return _file_hash(str(path), path.stat().st_size, path.stat().st_mtime_ns, False)
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix.lower() in _FINGERPRINTED:
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
