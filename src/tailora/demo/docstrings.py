"""A small real classification task that every Python brings along: which module does a docstring belong to?

The docstrings are read from the standard library of the running interpreter and never shipped.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from tailora.artifacts import canonical_json, write_text
from tailora.errors import DataError

MODULES = (
    "asyncio",
    "email",
    "http",
    "importlib",
    "inspect",
    "ipaddress",
    "logging",
    "mailbox",
    "multiprocessing",
    "tarfile",
    "unittest",
    "xml",
)
"""Modules with many docstrings in Python 3.11 to 3.13."""

HELD_OUT = 4
"""One docstring in four is held out, chosen by its content."""

_SKIPPED = {"test", "tests", "__pycache__", "site-packages", "idle_test"}
_SHORTEST, _LONGEST = 5, 60


def write_docstrings(folder: Path, *, modules: Sequence[str] = MODULES, per_module: int = 120) -> tuple[Path, Path]:
    """Write ``train.jsonl`` and ``heldout.jsonl`` with the fields ``text`` and ``label``.

    A docstring that occurs in two modules, or twice in one, is used once at most; the modules' names are blanked out,
    which would give the answer away.

    Args:
        folder: Where to write.
        modules: The classes.
        per_module: At most so many docstrings of each, chosen by content hash.

    Returns:
        The paths of training and held-out data.

    Raises:
        DataError: This Python lacks the sources of most of the modules.
    """
    found: dict[str, str] = {}
    shared = set()
    for module in modules:
        for text in sorted(set(_texts(module, modules))):
            if text in found:
                shared.add(text)
            found.setdefault(text, module)
    rows: dict[str, list[str]] = {}
    for text, module in found.items():
        if text not in shared:
            rows.setdefault(module, []).append(text)
    kept = {module: sorted(texts, key=_hash)[:per_module] for module, texts in rows.items() if len(texts) >= 20}
    if len(kept) < 2:
        raise DataError(
            "this Python's standard library has no readable sources, which the demo takes its docstrings from; run it "
            "with a Python that has them (python.org, Debian, conda)"
        )
    training, held_out = [], []
    for module, texts in kept.items():
        for text in texts:
            side = held_out if _hash(text) % HELD_OUT == 0 else training
            side.append({"text": text, "label": module})
    paths = folder / "train.jsonl", folder / "heldout.jsonl"
    for path, side in zip(paths, (training, held_out), strict=True):
        ordered = sorted(side, key=lambda row: _hash(row["text"]))
        write_text(path, "".join(canonical_json(row) + "\n" for row in ordered))
    return paths


def _texts(module: str, modules: Sequence[str]) -> Iterator[str]:
    names = re.compile(rf"\b_?({'|'.join(sorted(modules, key=len, reverse=True))})\b(?:\.\w+)*", re.IGNORECASE)
    for path in _sources(module):
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                words = names.sub("it", ast.get_docstring(node) or "").split()
                if len(words) >= _SHORTEST:
                    yield " ".join(words[:_LONGEST])


def _sources(module: str) -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    single, package = root / f"{module}.py", root / module
    if single.is_file():
        return [single]
    files = sorted(package.rglob("*.py")) if package.is_dir() else []
    return [path for path in files if not _SKIPPED & set(path.relative_to(root).parts)]


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)
