"""A data set as named columns, whichever file or hub it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailora.artifacts import content_hash
from tailora.config_files import DATA_SUFFIXES
from tailora.data.hub import read_hub
from tailora.data.readers import read_file
from tailora.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Table:
    """Rows of a data set by column.

    Attributes:
        columns: Column name -> values, all of the same length; columns of a file without a header are numbered
            ``"0"``, ``"1"``, ...
        source: Path or hub id, for messages.
    """

    columns: dict[str, list[Any]]
    source: str

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.columns.values()), []))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the contents, whatever the file is called and in whichever format it is stored."""
        return content_hash({name: [_plain(value) for value in values] for name, values in self.columns.items()})

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
                shown = type(value).__name__
                raise DataError(
                    f"{self.source!r}, column {str(name)!r}, row {row + 1} holds {shown} and no text; "
                    f"choose another column with {what}"
                )
        return values

    def take(self, rows: Sequence[int]) -> Table:
        """Return the table of the given rows, in that order."""
        return Table({name: [values[row] for row in rows] for name, values in self.columns.items()}, self.source)


def read_table(
    source: str, *, header: bool = True, config: str | None = None, split: str = "train", revision: str | None = None
) -> Table:
    """Read a local file or a hub data set.

    Args:
        source: Path of a csv, tsv, json, jsonl or txt file, or a hub id.
        header: Whether a csv or tsv file starts with column names.
        config: Hub configuration name.
        split: Hub split.
        revision: Hub revision.

    Returns:
        The table; never empty.

    Raises:
        DataError: Missing, a folder, empty, undecodable, or of a kind that is not read.
    """
    path = Path(source).expanduser()
    if path.is_dir() and (source[0] in "./~" or not _looks_like_hub(source)):
        raise DataError(f"data {source!r} is a folder; give the file inside it")
    local = path.is_file() or source[0] in "./~" or path.suffix.lower() in DATA_SUFFIXES
    columns = read_file(path, header=header) if local else read_hub(source, config, split, revision)
    table = Table(columns, source)
    if not len(table):
        raise DataError(f"data {source!r} has column names but no rows; is it the right file?")
    return table


def _looks_like_hub(source: str) -> bool:
    return source.count("/") == 1 and not Path(source).is_absolute()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return "nan"
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)
