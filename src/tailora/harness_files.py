"""Task files of one's own for lm-eval: which of them a task is made of, and which data they read.

Only YAML is read here; lm-eval itself is not needed to name a run by what it evaluates.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tailora.errors import ConfigError

DATA_ROOT = "${data_root}"
"""What stands in a task file for the folder of the data, which differs from machine to machine."""

DATA_VARIABLE = "TAILORA_DATA"
"""Environment variable with that folder."""


@dataclass(frozen=True)
class LocalTasks:
    """The files behind some of the tasks in a folder.

    Attributes:
        folder: The folder, absolute.
        texts: Task file to its text with the data's folder filled in.
        files: The task files as they are, and the Python files beside them.
        data: Local data files that the task files name.
        missing: Names that no file in the folder defines.
        broken: Files in the folder that hold no YAML mapping, with the reason.
        names: Every task, group and tag in the folder.
    """

    folder: Path
    texts: Mapping[Path, str]
    files: tuple[Path, ...]
    data: tuple[Path, ...]
    missing: tuple[str, ...]
    broken: Mapping[Path, str]
    names: tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """Plain YAML in which ``!function`` is the text behind it."""


def _written(loader: _Loader, node: yaml.ScalarNode) -> Any:
    return loader.construct_scalar(node)


_Loader.add_constructor("!function", _written)


def local_tasks(include_path: str, names: Iterable[str], data_root: str | None) -> LocalTasks:
    """Find the files that tasks in a folder are made of.

    Args:
        include_path: The folder; its subfolders count.
        names: Tasks, groups or tags, whether or not the folder defines them.
        data_root: What ``${data_root}`` stands for; the environment's ``TAILORA_DATA`` when ``None``.

    Returns:
        The files.

    Raises:
        ConfigError: There is no such folder, it holds no task file, a file includes one outside it, or a file needs
            ``data_root`` and there is none.
    """
    folder = _existing(include_path)
    root = data_root or os.environ.get(DATA_VARIABLE)
    homes, broken = _index(folder)
    if not homes:
        reason = next((f" ({path.name}: {why})" for path, why in broken.items()), "")
        raise ConfigError(
            f"harness.include_path={include_path!r} holds no task file{reason}; give a folder with .yaml files that "
            "have a key 'task'"
        )
    texts: dict[Path, str] = {}
    values: list[Any] = []
    missing: list[str] = []
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        if name not in homes:
            missing.append(name)
        for path in homes.get(name, ()):
            for file in _with_includes(path, folder):
                if file not in texts:
                    texts[file] = _filled(file, root)
                    values.append(read_task_file(file, texts[file]))
                    waiting += _members(values[-1])
    data = {path for value in values for path in _data(value)}
    code = {path for file in texts for path in file.parent.glob("*.py")}
    return LocalTasks(
        folder=folder,
        texts=texts,
        files=tuple(sorted({*texts, *code})),
        data=tuple(sorted(data)),
        missing=tuple(missing),
        broken=broken,
        names=tuple(homes),
    )


def read_task_file(path: Path, text: str | None = None) -> dict[str, Any]:
    """Read one task file without what it includes.

    Args:
        path: The file.
        text: Its text, where it has been read.

    Returns:
        Its keys and values.

    Raises:
        ConfigError: It holds no YAML mapping.
    """
    try:
        # _Loader derives from SafeLoader: it builds plain values only.
        value = yaml.load(path.read_text(encoding="utf-8") if text is None else text, Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "strerror", None) or "it is no text"
        place = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(f"task file {str(path)!r} cannot be read: {reason}{place}; correct it") from None
    if not isinstance(value, dict):
        raise ConfigError(f"task file {str(path)!r} cannot be read: it holds no mapping; correct it")
    return value


def _existing(include_path: str) -> Path:
    folder = Path(include_path).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"harness.include_path={include_path!r} is no folder; give the folder of the task files")
    return folder


def _index(folder: Path) -> tuple[dict[str, list[Path]], dict[Path, str]]:
    """Return the files by the tasks, groups and tags they define; the first file of a name counts, as in lm-eval."""
    homes: dict[str, list[Path]] = {}
    broken: dict[Path, str] = {}
    tagged: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.yaml"), key=Path.as_posix):
        try:
            value = read_task_file(path)
            if isinstance(value.get("include"), str | list):
                for file in _with_includes(path, folder):
                    value = read_task_file(file) | value
        except ConfigError as error:
            broken[path] = str(error).partition("cannot be read: ")[2].removesuffix("; correct it") or str(error)
            continue
        name = value.get("group") if "group" in value and "class" not in value else value.get("task")
        if isinstance(name, str):
            homes.setdefault(name, [path])
            for tag in _list(value.get("tag")):
                tagged.setdefault(str(tag), []).append(path)
    for tag, paths in tagged.items():
        homes.setdefault(tag, paths)
    return homes, broken


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _with_includes(path: Path, folder: Path) -> Iterator[Path]:
    """Yield a task file and, each once, the files it includes."""
    waiting, seen = [path], set()
    while waiting:
        file = waiting.pop(0).resolve()
        if file in seen:
            continue
        seen.add(file)
        if not file.is_relative_to(folder):
            raise ConfigError(
                f"task file {str(path)!r} includes {str(file)!r}, which lies outside harness.include_path; give a "
                "folder that holds both"
            )
        yield file
        waiting += [file.parent / str(name) for name in _list(read_task_file(file).get("include"))]


def _filled(path: Path, root: str | None) -> str:
    text = path.read_text(encoding="utf-8")
    if DATA_ROOT not in text:
        return text
    if not root:
        raise ConfigError(
            f"task file {str(path)!r} reads data in {DATA_ROOT}; give that folder as harness.data_root (--data-root), "
            f"or in the environment variable {DATA_VARIABLE}"
        )
    place = Path(root).expanduser().resolve()
    if not place.is_dir():
        raise ConfigError(f"harness.data_root={root!r} is no folder; give the folder of the data")
    return text.replace(DATA_ROOT, place.as_posix())


def _members(value: Mapping[str, Any]) -> list[str]:
    """Return the names that a group's file lists."""
    found: list[str] = []
    for member in _list(value.get("task")) if "group" in value else ():
        if isinstance(member, dict):
            inner = member.get("task") if "group" not in member else None
            found += [inner] if isinstance(inner, str) else []
            found += _members(member) or ([member["group"]] if isinstance(member.get("group"), str) else [])
        elif isinstance(member, str):
            found.append(member)
    return found


def _data(value: Any) -> Iterator[Path]:
    """Yield the files on this machine that a task file names with their full path, patterns included."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _data(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _data(inner)
    elif isinstance(value, str) and value.startswith("/") and len(value) < 4096 and "\n" not in value:
        places = [Path(value)] if not glob.has_magic(value) else map(Path, glob.glob(value, recursive=True))
        yield from (place for place in places if place.exists())
