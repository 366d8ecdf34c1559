"""Class labels: names in the data, numbers in the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tailora.errors import DataError


@dataclass(frozen=True)
class Labels:
    """The classes of a task, in the order of the model's outputs.

    Attributes:
        names: One name per class; numeric names are sorted as numbers, others alphabetically.
    """

    names: tuple[str, ...]

    @classmethod
    def from_training(cls, values: Iterable[Any], source: str, column: str | int) -> Labels:
        """Collect the classes that the training data has.

        Args:
            values: The label of each training row: names, or ids as text or integers.
            source: Where they came from, for messages.
            column: Their column.

        Returns:
            The classes.

        Raises:
            DataError: A label is missing or is a fraction, or there is only one class.
        """
        names = sorted({_name(value, row, source, column) for row, value in enumerate(values)}, key=_order)
        if len(names) < 2:
            raise DataError(
                f"{source!r}, column {str(column)!r} has only the class {names[0]!r}; classification needs two or more"
            )
        return cls(tuple(names))

    def encode(self, values: Sequence[Any], source: str, column: str | int) -> list[int]:
        """Return the class number of each row.

        Args:
            values: Labels as in the data.
            source: Where they came from, for messages.
            column: Their column.

        Returns:
            Numbers from 0 in the order of ``names``.

        Raises:
            DataError: A label that the training data does not have.
        """
        index = {name: number for number, name in enumerate(self.names)}
        ids = []
        for row, value in enumerate(values):
            name = _name(value, row, source, column)
            if name not in index:
                shown = ", ".join(self.names[:10]) + (", ..." if len(self.names) > 10 else "")
                raise DataError(
                    f"{source!r}, row {row + 1} has the label {name!r}, which the training data lacks (it has "
                    f"{shown}); remove the row or add training examples"
                )
            ids.append(index[name])
        return ids


def _name(value: Any, row: int, source: str, column: str | int) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int) or value == "":
        shown = "no label" if value is None or value == "" else f"the label {value!r}"
        raise DataError(
            f"{source!r}, column {str(column)!r}, row {row + 1} has {shown}; a class name or a whole number is expected"
        )
    return str(value).strip()


def _order(name: str) -> tuple[int, int, str]:
    try:
        return (0, int(name), name)
    except ValueError:
        return (1, 0, name)
