"""Data sets through the ``datasets`` library: hub ids and its local builders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailora.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import datasets


def read_hub(source: str, config: str | None, split: str, revision: str | None = None) -> dict[str, list[Any]]:
    """Load one split with ``datasets.load_dataset``.

    Class labels come back as their names, so that they mean the same as in a local file.

    Args:
        source: Hub id, or a folder that ``datasets`` can read.
        config: Configuration name.
        split: Split name.
        revision: Hub revision.

    Returns:
        Column name -> values.

    Raises:
        DataError: The data set, the configuration or the split cannot be had; the library's reason is quoted.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        loaded = datasets.load_dataset(source, config, revision=revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"data set {source!r} cannot be loaded ({reason}); check the id, the configuration and the network, "
            "or give a local file"
        ) from None
    if split not in loaded:
        known = [str(name) for name in loaded]
        hint = did_you_mean(split, known) or ";"
        raise DataError(f"data set {source!r} has no split {split!r}{hint} splits: {', '.join(known)}")
    return columns_of(loaded[split], f"split {split!r} of {source!r}")


def columns_of(data: datasets.Dataset, what: str) -> dict[str, list[Any]]:
    """Return a data set as columns, with the names of the classes instead of their numbers.

    Args:
        data: A ``datasets.Dataset``.
        what: What it is, for messages.

    Returns:
        Column name -> values.

    Raises:
        DataError: The labels are hidden, as in the test splits of benchmarks.
    """
    import datasets

    columns: dict[str, list[Any]] = {}
    for name in data.column_names:
        values = list(data[name])
        feature = data.features[name]
        if isinstance(feature, datasets.ClassLabel):
            if any(value == -1 for value in values):
                raise DataError(f"{what} has no labels (-1); choose a labelled split, such as 'validation'")
            values = [None if value is None else feature.int2str(value) for value in values]
        elif isinstance(tags := getattr(feature, "feature", None), datasets.ClassLabel):
            values = [None if row is None else [tags.int2str(tag) for tag in row] for row in values]
        columns[name] = values
    return columns
