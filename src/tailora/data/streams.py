"""Rows of a source one after the other, for data that does not fit into memory."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tailora.data.readers import FILE_SUFFIXES
from tailora.data.table import Table
from tailora.errors import DataError, did_you_mean

Row = dict[str, Any]
Item = TypeVar("Item")

STREAM_SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".txt")
"""File endings that can be read row by row."""

LINE_LIMIT = 1 << 20
"""Characters of a text file's line that are read at a time: some texts have no line ends."""


@dataclass(frozen=True)
class Stream:
    """Rows that are read anew whenever they are asked for.

    Attributes:
        source: Path or hub id, for messages.
        passes: Opens the source and yields its rows.
        first: Rows before this one, from 0, are left out.
        stop: Rows from this one on are left out.
        lines: Whether the rows are lines of running text rather than examples.
    """

    source: str
    passes: Callable[[], Iterator[Row]]
    first: int = 0
    stop: int | None = None
    lines: bool = False

    def __iter__(self) -> Iterator[Row]:
        """Read the source from its beginning; nothing beyond the row that is asked for is parsed."""
        return itertools.islice(self.passes(), self.first, self.stop)

    def part(self, first: int, stop: int | None) -> Stream:
        """Return the stream of the rows from ``first`` up to but not with ``stop``, counted from 0."""
        return replace(self, first=first, stop=stop)

    def tables(self, rows: int) -> Iterator[Table]:
        """Yield tables of ``rows`` rows each; the last one may be shorter.

        Args:
            rows: Rows per table.

        Yields:
            Tables whose columns are those of the first row.

        Raises:
            DataError: A row lacks a column.
        """
        number, names, remaining = self.first, [], iter(self)
        while chunk := list(itertools.islice(remaining, rows)):
            names = names or list(chunk[0])
            for place, row in enumerate(chunk, number + 1):
                if missing := next((name for name in names if name not in row), None):
                    raise DataError(
                        f"data {self.source!r}, row {place} lacks the field {missing!r}, which row {self.first + 1} "
                        "has; add it (null stands for no value)"
                    )
            columns = {name: [row[name] for row in chunk] for name in names}
            yield Table(columns, self.source, "", tuple(range(number + 1, number + len(chunk) + 1)))
            number += len(chunk)


def open_stream(source: str, *, config: str | None = None, split: str = "train", revision: str | None = None) -> Stream:
    """Open a local file, a folder or a hub data set for reading row by row.

    Args:
        source: Path of a jsonl, parquet or txt file (its rows are lines), a folder with such files per split or one
            that ``datasets`` saved, or a hub id.
        config: Hub configuration name.
        split: Split of a folder or hub data set.
        revision: Hub revision.

    Returns:
        The stream; no row has been read.

    Raises:
        DataError: There is no such data, or it is of a kind that cannot be read row by row.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = _split_files(path, split)
        if files is None:
            return Stream(source, functools.partial(_saved, path, split))
        rows = functools.partial(_joined_rows, files)
        return Stream(source, rows, lines=files[0].suffix.lower() == ".txt")
    if path.is_file() or source[0] in "./~" or path.suffix.lower() in FILE_SUFFIXES:
        _check_file(path)
        return Stream(source, functools.partial(_file_rows, path), lines=path.suffix.lower() == ".txt")
    return Stream(source, functools.partial(_hub_rows, source, config, split, revision))


def shuffled(items: Iterable[Item], buffer: int, seed: tuple[int, ...]) -> Iterator[Item]:
    """Yield items in an order that depends on the seed alone, holding ``buffer`` of them at a time.

    Every item that arrives takes the place of one drawn from the buffer, as ``datasets`` shuffles its streams.

    Args:
        items: Read one by one.
        buffer: Items held; with 0 or 1 the order stays as it is.
        seed: Of a private generator.

    Yields:
        Every item once.
    """
    draw = np.random.default_rng(seed)
    held: list[Item] = []
    for item in items:
        if len(held) < max(buffer, 1):
            held.append(item)
            continue
        place = int(draw.integers(len(held)))
        held[place], item = item, held[place]
        yield item
    yield from (held[place] for place in draw.permutation(len(held)))


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"data {str(path)!r} does not exist; check the path")
    if path.suffix.lower() not in STREAM_SUFFIXES:
        ends = f"ends in {path.suffix!r}" if path.suffix else "has no ending"
        raise DataError(
            f"data {str(path)!r} {ends} and cannot be read row by row; convert it to one of "
            f"{', '.join(STREAM_SUFFIXES)}, or set task.streaming=false"
        )


def _split_files(path: Path, split: str) -> list[Path] | None:
    """Return the files of a split, sorted; ``None`` for a folder that ``datasets`` saved."""
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return None
    files = sorted(
        file
        for folder in (path, path / "data")
        if folder.is_dir()
        for file in folder.iterdir()
        if file.is_file() and file.suffix.lower() in STREAM_SUFFIXES
    )
    # Text files of a folder are often a corpus in parts, named after anything; as one split they are all of it.
    if files and all(file.suffix.lower() == ".txt" for file in files):
        return files
    files = [file for file in files if file.suffix.lower() != ".txt"]
    chosen = [file for file in files if file.stem.partition("-")[0] == split]
    if not chosen:
        known = sorted({file.stem.partition("-")[0] for file in files})
        hint = did_you_mean(split, known) or ";"
        raise DataError(
            f"data {str(path)!r} has no split {split!r} that can be read row by row{hint} splits: "
            f"{', '.join(known) or 'none'}"
        )
    return chosen


def _joined_rows(files: list[Path]) -> Iterator[Row]:
    for file in files:
        yield from _file_rows(file)


def _file_rows(path: Path) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path)
    return _text_rows(path, _line_rows if suffix == ".txt" else _json_rows)


def _text_rows(path: Path, read: Callable[[Path, Any], Iterator[Row]]) -> Iterator[Row]:
    try:
        # Only \n ends a line, as everywhere else; the mark that some programs write in front is no text.
        with open(path, encoding="utf-8-sig", newline="\n") as lines:
            yield from read(path, lines)
    except UnicodeDecodeError:
        raise DataError(f"data {str(path)!r} is not UTF-8 text; convert it, for example with iconv") from None
    except OSError as error:
        raise DataError(f"data {str(path)!r} cannot be read: {error.strerror}") from None


def _line_rows(path: Path, lines: Any) -> Iterator[Row]:
    while line := lines.readline(LINE_LIMIT):
        yield {"text": line}


def _json_rows(path: Path, lines: Any) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"data {str(path)!r}, line {number} is not valid JSON: {error.msg}; fix it") from None
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise DataError(f"data {str(path)!r}, line {number} is no object with named fields; make it one")
        yield row


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError):
        raise DataError(f"data {str(path)!r} is no parquet file or a broken one; write it again") from None


def _saved(path: Path, split: str) -> Iterator[Row]:
    """Read what ``save_to_disk`` wrote: arrow files, which are mapped into memory and not read at once."""
    import datasets
    import pyarrow

    place = path
    if (path / "dataset_dict.json").is_file():
        place = path / split
        if not (place / "state.json").is_file():
            known = [folder.name for folder in sorted(path.iterdir()) if (folder / "state.json").is_file()]
            hint = did_you_mean(split, known) or ";"
            raise DataError(f"data {str(path)!r} has no split {split!r}{hint} splits: {', '.join(known) or 'none'}")
    try:
        data: Any = datasets.load_from_disk(str(place))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"data {str(place)!r} cannot be loaded ({reason}); save it again with save_to_disk") from None
    for row in data:
        yield dict(row)


def _hub_rows(source: str, config: str | None, split: str, revision: str | None) -> Iterator[Row]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        data = datasets.load_dataset(source, config, split=split, revision=revision, streaming=True)
        with contextlib.closing(iter(data)) as rows:
            for row in rows:
                yield dict(row)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"data set {source!r}, split {split!r} cannot be read row by row ({reason}); check the id, the "
            "configuration, the split and the network, or give a local file"
        ) from None
