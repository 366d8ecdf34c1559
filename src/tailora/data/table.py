"""A data set as named columns, whichever file or hub it came from."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailora.artifacts import content_hash
from tailora.data.folders import read_folder
from tailora.data.hub import read_hub
from tailora.data.readers import FILE_SUFFIXES, read_file
from tailora.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Table:
    """Rows of a data set by column.

    Attributes:
        columns: Column name -> values, all of the same length; columns of a file without a header are numbered
            ``"0"``, ``"1"``, ...
        source: Path or hub id, for messages.
        form: How the rows are to be read, where that is more than the columns say; part of the fingerprint.
        numbers: Where each row stands in the source, from 1; 1, 2, ... when left out.
    """

    columns: dict[str, list[Any]]
    source: str
    form: str = ""
    numbers: tuple[int, ...] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.columns.values()), []))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the contents, whatever the file is called and in whichever format it is stored."""
        columns = {name: [_plain(value) for value in values] for name, values in self.columns.items()}
        return content_hash([self.form, columns] if self.form else columns)

    def number(self, row: int) -> int:
        """Return where a row stands in the source, from 1, also after ``take``."""
        return row + 1 if self.numbers is None else self.numbers[row]

    def column(self, name: str | int, what: str) -> list[Any]:
        """Return the values of one column.

        Args:
            name: Column name, or its number from 0 in a file without a header.
            what: What the column is for, such as ``"task.text"``.

        Returns:
            One value per row.

        Raises:
            DataError: There is no such column.
        """
        key = str(name)
        if key in self.columns:
            return self.columns[key]
        known = list(self.columns)
        hint = did_you_mean(key, known) or ";"
        raise DataError(f"{self.source!r} has no column {key!r}{hint} columns: {', '.join(known)} (set {what})")

    def texts(self, name: str | int, what: str) -> list[str]:
        """Return a column whose values are all texts.

        Args:
            name: Column name or number.
            what: What the column is for.

        Returns:
            One text per row.

        Raises:
            DataError: The column is missing, or a value is no text.
        """
        values = self.column(name, what)
        for row, value in enumerate(values):
            if not isinstance(value, str):
                shown = _KINDS.get(type(value), type(value).__name__)
                raise DataError(
                    f"{self.source!r}, column {str(name)!r}, row {self.number(row)} holds {shown} and no text; "
                    f"choose another column with {what}"
                )
        return values

    def take(self, rows: Sequence[int]) -> Table:
        """Return the table of the given rows, in that order."""
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        return Table(columns, self.source, self.form, tuple(self.number(row) for row in rows))


def read_table(
    source: str, *, header: bool = True, config: str | None = None, split: str = "train", revision: str | None = None
) -> Table:
    """Read a local file or a hub data set.

    Args:
        source: Path of a csv, tsv, json, jsonl, parquet or txt file, a folder that ``datasets`` saved or that has one
            file per split, or a hub id.
        header: Whether a csv or tsv file starts with column names.
        config: Hub configuration name.
        split: Split of a folder or hub data set.
        revision: Hub revision.

    Returns:
        The table; never empty.

    Raises:
        DataError: Missing, empty, undecodable, or of a kind that is not read.
    """
    path = Path(source).expanduser()
    if path.is_dir() and (source[0] in "./~" or not _looks_like_hub(source)):
        columns = read_folder(path, split, functools.partial(read_file, header=header))
    elif path.is_file() or source[0] in "./~" or path.suffix.lower() in FILE_SUFFIXES:
        columns = read_file(path, header=header)
    else:
        columns = read_hub(source, config, split, revision)
    table = Table(columns, source)
    if not len(table):
        raise DataError(f"data {source!r} has column names but no rows; is it the right file?")
    return table


def _looks_like_hub(source: str) -> bool:
    return source.count("/") == 1 and not Path(source).is_absolute()


def _plain(value: Any) -> Any:
    """Return what JSON can hold; conversations are lists of dicts, so it goes down into them."""
    if isinstance(value, str | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else str(value)


_KINDS = {type(None): "null", list: "a list", dict: "an object", int: "a number", float: "a number"}
