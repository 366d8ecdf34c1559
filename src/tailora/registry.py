"""A small name-to-entry table used for signals, allocators, training methods and tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from tailora.errors import TailoraError, unknown_name

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One registered thing with what a reader needs to trust it.

    Attributes:
        name: The name users write.
        value: The registered object.
        summary: One line for listings.
        citation: Paper or source; empty when it is folklore.
    """

    name: str
    value: T
    summary: str
    citation: str = ""


class Registry(Generic[T]):
    """Names to entries; duplicates and unknown names raise a sentence.

    Args:
        kind: What the entries are, in the singular, for messages.
    """

    def __init__(self, kind: str) -> None:
        """Start empty."""
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}

    def add(self, name: str, value: T, *, summary: str, citation: str = "") -> T:
        """Register ``value`` under ``name``.

        Args:
            name: The name users write; must be new.
            value: The object.
            summary: One line for listings.
            citation: Paper or source.

        Returns:
            ``value``, unchanged.

        Raises:
            TailoraError: The name is taken.
        """
        if name in self._entries:
            raise TailoraError(f"{self.kind} {name!r} is registered twice; give the second one another name")
        self._entries[name] = Entry(name, value, summary, citation)
        return value

    def entry(self, name: str) -> Entry[T]:
        """Return the entry called ``name``.

        Args:
            name: A registered name.

        Returns:
            The entry.

        Raises:
            UnknownNameError: No such name; the message offers the nearest.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise unknown_name(self.kind, name, self._entries) from None

    def __getitem__(self, name: str) -> T:
        """Return the object registered under ``name``."""
        return self.entry(name).value

    def __contains__(self, name: object) -> bool:
        """Tell whether ``name`` is registered."""
        return name in self._entries

    def __iter__(self) -> Iterator[Entry[T]]:
        """Iterate over entries in order of registration."""
        return iter(self._entries.values())

    def names(self) -> list[str]:
        """Return the registered names in order of registration."""
        return list(self._entries)
