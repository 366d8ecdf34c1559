"""Local files to columns: csv, tsv, json, jsonl, parquet and plain text."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tailora.artifacts import read_text
from tailora.errors import DataError

Columns = dict[str, list[Any]]


def read_file(path: Path, *, header: bool = True) -> Columns:
    """Read a file by its ending.

    Args:
        path: A ``.csv``, ``.tsv``, ``.json``, ``.jsonl``, ``.ndjson``, ``.parquet`` or ``.txt`` file.
        header: Whether csv and tsv start with a line of column names.

    Returns:
        Column name -> values.  A text file is one row with one column ``text``.

    Raises:
        DataError: The file is missing, a folder, empty, not UTF-8, malformed or of another kind.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from tailora.data.folders import read_parquet

        return read_parquet(path)
    reader = _READERS.get(suffix)
    if reader is None and path.is_file():
        ends = f"ends in {path.suffix!r}" if path.suffix else "has no ending"
        raise DataError(f"data {str(path)!r} {ends}; give a file that ends in {', '.join(FILE_SUFFIXES)}")
    text = _read_text(path)
    if not text.strip():
        raise DataError(f"data {str(path)!r} is empty; is it the right file?")
    assert reader is not None
    return reader(text, path, header)


def _read_text(path: Path) -> str:
    return read_text(path, "data", DataError, recode="convert it, for example with iconv")


def _table(rows: list[list[str]], lines: list[int], path: Path, header: bool) -> Columns:
    names = rows[0] if header else [str(number) for number in range(len(rows[0]))]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"data {str(path)!r} has two columns called {twice!r}; rename one, or set task.header=false")
    body = rows[1:] if header else rows
    for row, line in zip(body, lines[1:] if header else lines, strict=True):
        if len(row) != len(names):
            raise DataError(
                f"data {str(path)!r}, line {line} has {len(row)} fields where {len(names)} are expected; correct the "
                "line or the separator"
            )
    return {name: [row[index] for row in body] for index, name in enumerate(names)}


def _read_csv(text: str, path: Path, header: bool) -> Columns:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, lines = [], []
    # A document may be longer than the 128 KiB that Python allows a field; the limit belongs to the whole process.
    limit = csv.field_size_limit(sys.maxsize)
    start = 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"data {str(path)!r}, line {start} is not valid csv: {error}; correct the quotes") from None
    finally:
        csv.field_size_limit(limit)
    return _table(rows, lines, path, header)


def _read_tsv(text: str, path: Path, header: bool) -> Columns:
    # No quote handling: in GLUE's files a quotation mark is a character like any other, often unpaired.  Only \n ends
    # a row, since str.splitlines would also cut at characters that stand inside sentences.
    numbered = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1)]
    kept = [(number, line.split("\t")) for number, line in numbered if line]
    return _table([row for _, row in kept], [number for number, _ in kept], path, header)


def _read_json(text: str, path: Path, header: bool) -> Columns:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        # Many a .json file holds JSON lines: then its first line is whole and the next one is too much.
        if error.msg == "Extra data" and text[: error.pos].strip().count("\n") == 0:
            return _read_jsonl(text, path, header)
        raise DataError(
            f"data {str(path)!r}, line {error.lineno} is not valid JSON: {error.msg}; correct it or export it again"
        ) from None
    if isinstance(value, dict):
        return _json_object(value, path)
    if not isinstance(value, list):
        raise DataError(f"data {str(path)!r} holds {_kind(value)}; a list of records is expected")
    return _records(value, range(1, len(value) + 1), path, "record")


def _json_object(value: dict[str, Any], path: Path) -> Columns:
    """Read either columns (every value a list) or one key that holds the list of records."""
    lists = {name: column for name, column in value.items() if isinstance(column, list)}
    holders = [name for name, column in lists.items() if column and all(isinstance(item, dict) for item in column)]
    if len(holders) == 1 and len(lists) == 1:
        records = lists[holders[0]]
        return _records(records, range(1, len(records) + 1), path, "record")
    if not value or len(lists) < len(value):
        raise DataError(
            f"data {str(path)!r} is an object in which no single key holds a list of records; give a list of records, "
            "or one list per column"
        )
    if len({len(column) for column in lists.values()}) > 1:
        raise DataError(f"data {str(path)!r} has columns of different lengths; give each the same number of values")
    return lists


def _read_jsonl(text: str, path: Path, header: bool) -> Columns:
    records, lines = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            lines.append(number)
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"data {str(path)!r}, line {number} is not valid JSON: {error.msg}; fix it") from None
    return _records(records, lines, path, "line")


def _read_txt(text: str, path: Path, header: bool) -> Columns:
    return {"text": [text]}


def _records(records: list[Any], numbers: Sequence[int], path: Path, unit: str) -> Columns:
    """Turn records into columns; ``numbers`` says where each one stands in the file."""
    if not records:
        raise DataError(f"data {str(path)!r} is an empty list; is it the right file?")
    if all(isinstance(record, str) for record in records):
        return {"text": list(records)}
    first: dict[str, int] = {}
    for number, record in zip(numbers, records, strict=True):
        if not isinstance(record, dict):
            raise DataError(
                f"data {str(path)!r}, {unit} {number} is {_kind(record)} and no object with named fields; make it one"
            )
        for name in record:
            first.setdefault(name, number)
    for number, record in zip(numbers, records, strict=True):
        for name in first:
            if name not in record:
                raise DataError(
                    f"data {str(path)!r}, {unit} {number} lacks the field {name!r}, which {unit} {first[name]} has; "
                    "add it (null stands for no value)"
                )
    return {name: [record[name] for record in records] for name in first}


def _kind(value: Any) -> str:
    """Name a JSON value as its user would."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


_READERS: dict[str, Callable[[str, Path, bool], Columns]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".txt": _read_txt,
}

FILE_SUFFIXES = (*_READERS, ".parquet")
"""File endings that ``read_file`` knows."""
