"""Reading YAML strictly: no silent duplicates, plain values only, one sentence for everything that can be wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tailora.artifacts import read_text
from tailora.errors import ConfigError

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


def read_yaml(path: str | Path, what: str = "configuration", example: str = "model: ...") -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: The file.
        what: What the file is meant to be, for messages.
        example: What such a mapping begins with, for messages.

    Returns:
        The mapping.

    Raises:
        ConfigError: The file is missing, a folder, unreadable, or holds something else.
    """
    where = f"{what} {str(path)!r}"
    values = read_yaml_text(read_text(path, what, ConfigError, recode="convert it, for example with iconv"), where)
    check_plain(values, where)
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise ConfigError(f"{where} {found}; it must be a mapping such as {example!r}")
    return values
