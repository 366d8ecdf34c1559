"""Local files to columns: csv, tsv, json, jsonl and plain text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tailora.errors import DataError

Columns = dict[str, list[Any]]


def read_file(path: Path, *, header: bool = True) -> Columns:
    """Read a file by its ending.

    Args:
        path: A ``.csv``, ``.tsv``, ``.json``, ``.jsonl``, ``.ndjson`` or ``.txt`` file.
        header: Whether csv and tsv start with a line of column names.

    Returns:
        Column name -> values.  A text file is one row with one column ``text``.

    Raises:
        DataError: The file is missing, a folder, empty, not UTF-8, malformed or of another kind.
    """
    reader = _READERS.get(path.suffix.lower())
    text = _read_text(path)
    if reader is None:
        raise DataError(
            f"data {str(path)!r} ends in {path.suffix or 'nothing'!r}; rename it to one of {', '.join(_READERS)}"
        )
    if not text.strip():
        raise DataError(f"data {str(path)!r} is empty; is it the right file?")
    return reader(text, path, header)


def _read_text(path: Path) -> str:
    try:
        # utf-8-sig drops the mark that spreadsheets write in front; it would become part of the first column's name.
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"data {str(path)!r} does not exist; check the path") from None
    except IsADirectoryError:
        raise DataError(f"data {str(path)!r} is a folder; give the file inside it") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"data {str(path)!r} is not UTF-8 text (byte {error.start}); convert it, for example with iconv"
        ) from None
    except OSError as error:
        raise DataError(f"data {str(path)!r} cannot be read: {error.strerror}") from None


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
    reader = csv.reader(io.StringIO(text, newline=""))
    rows, lines = [], []
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"data {str(path)!r}, line {reader.line_num} is not valid csv: {error}; correct it") from None
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
        raise DataError(
            f"data {str(path)!r} is not valid JSON (line {error.lineno}: {error.msg}); is it JSON lines (.jsonl)?"
        ) from None
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        if len({len(column) for column in value.values()}) > 1:
            raise DataError(f"data {str(path)!r} has columns of different lengths; give each the same number of values")
        return dict(value)
    if not isinstance(value, list):
        raise DataError(f"data {str(path)!r} holds a {type(value).__name__}; a list of records is expected")
    return _records(value, path, "record")


def _read_jsonl(text: str, path: Path, header: bool) -> Columns:
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"data {str(path)!r}, line {number} is not valid JSON: {error.msg}; fix it") from None
    return _records(records, path, "line")


def _read_txt(text: str, path: Path, header: bool) -> Columns:
    return {"text": [text]}


def _records(records: list[Any], path: Path, unit: str) -> Columns:
    if not records:
        raise DataError(f"data {str(path)!r} is an empty list; is it the right file?")
    if all(isinstance(record, str) for record in records):
        return {"text": list(records)}
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise DataError(f"data {str(path)!r}, {unit} {number} is no object with named fields; make it one")
    names = list(records[0])
    for number, record in enumerate(records, 1):
        if missing := [name for name in names if name not in record]:
            raise DataError(f"data {str(path)!r}, {unit} {number} lacks the field {missing[0]!r}; add it")
    return {name: [record[name] for record in records] for name in names}


_READERS: dict[str, Callable[[str, Path, bool], Columns]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".txt": _read_txt,
}
