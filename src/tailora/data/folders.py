"""Arrow data on disk: parquet files, folders that ``datasets`` saved, and folders with one file per split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tailora.data.hub import columns_of
from tailora.errors import DataError, did_you_mean

Columns = dict[str, list[Any]]


def read_parquet(path: Path) -> Columns:
    """Read a parquet file; class labels that ``datasets`` wrote come back as names.

    Args:
        path: The file.

    Returns:
        Column name -> values.

    Raises:
        DataError: The file is missing, a folder, or no parquet.
    """
    import datasets
    import pyarrow
    import pyarrow.parquet

    if path.is_dir():
        raise DataError(f"data {str(path)!r} is a folder; give a file inside it")
    try:
        # ParquetFile reads this one file; read_table would also guess columns from the names of its folders.
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read()
    except FileNotFoundError:
        raise DataError(f"data {str(path)!r} does not exist; check the path") from None
    except (pyarrow.ArrowException, OSError):
        raise DataError(f"data {str(path)!r} is no parquet file or a broken one; write it again") from None
    return columns_of(datasets.Dataset(table), f"data {str(path)!r}")


def read_folder(path: Path, split: str, read_file: Callable[[Path], Columns]) -> Columns:
    """Read one split of a folder.

    Args:
        path: What ``save_to_disk`` wrote (one data set, or several by split), or a folder with files such as
            ``train.jsonl`` or ``data/train-00000-of-00002.parquet``.
        split: Which split; a folder with a single saved data set has only that one.
        read_file: Reads one data file.

    Returns:
        Column name -> values.

    Raises:
        DataError: The folder holds no data, or not this split, or it is broken.
    """
    from tailora.data.readers import FILE_SUFFIXES

    if (path / "state.json").is_file():
        return _saved(path, f"data {str(path)!r}")
    if (path / "dataset_dict.json").is_file():
        splits = [folder.name for folder in sorted(path.iterdir()) if (folder / "state.json").is_file()]
        _known(path, split, splits)
        return _saved(path / split, f"split {split!r} of {str(path)!r}")
    files = [
        file
        for folder in (path, path / "data")
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if file.is_file() and file.suffix.lower() in FILE_SUFFIXES and file.suffix.lower() != ".txt"
    ]
    if not files:
        raise DataError(
            f"data {str(path)!r} is a folder without data; give a data file, or a folder that save_to_disk wrote"
        )
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(file.stem.partition("-")[0], []).append(file)
    _known(path, split, list(by_split))
    return _joined([(file, read_file(file)) for file in by_split[split]])


def _known(path: Path, split: str, splits: list[str]) -> None:
    if split not in splits:
        hint = did_you_mean(split, splits) or ";"
        raise DataError(f"data {str(path)!r} has no split {split!r}{hint} splits: {', '.join(splits) or 'none'}")


def _saved(path: Path, what: str) -> Columns:
    import datasets
    import pyarrow

    try:
        data = datasets.load_from_disk(str(path))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{what} cannot be loaded ({reason}); save it again with save_to_disk") from None
    assert isinstance(data, datasets.Dataset)
    return columns_of(data, what)


def _joined(parts: list[tuple[Path, Columns]]) -> Columns:
    """Put the parts of a split one after the other."""
    first, columns = parts[0]
    result = {name: list(values) for name, values in columns.items()}
    for file, more in parts[1:]:
        if set(more) != set(result):
            odd = sorted(set(more) ^ set(result))[0]
            raise DataError(
                f"data {str(file)!r} and {str(first)!r} belong to one split but only one has the column {odd!r}; "
                "give both the same columns"
            )
        for name, values in more.items():
            result[name] += values
    return result
