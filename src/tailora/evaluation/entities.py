"""Entities of a tagged text: spans of words, and the F1 over whole spans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Span = tuple[str, int, int]
"""Type of an entity, its first word, and the word after its last one."""

OUTSIDE = "O"
"""The tag of a word that belongs to nothing."""


def marks_entities(names: Sequence[str]) -> bool:
    """Tell whether tag names are those of the BIO scheme: ``O``, ``B-TYPE`` and ``I-TYPE``.

    Args:
        names: All tags of a task.

    Returns:
        Whether every name but ``O`` starts with ``B-`` or ``I-`` and names a type, and there is one.
    """
    inside = [name for name in names if name != OUTSIDE]
    return bool(inside) and all(name[:2] in ("B-", "I-") and len(name) > 2 for name in inside)


def spans(tags: Sequence[str]) -> list[Span]:
    """Return the entities of one text.

    ``B-TYPE`` begins an entity; ``I-TYPE`` goes on with one of the same type, and begins one where there is none to go
    on with, as a model may predict (and as the tags of CoNLL-2003, IOB1, are meant).  This is the reading of the
    CoNLL-2000 evaluation script (Tjong Kim Sang and Buchholz, "Introduction to the CoNLL-2000 shared task:
    chunking", CoNLL 2000).

    Args:
        tags: One tag per word.

    Returns:
        The entities in order.
    """
    found: list[Span] = []
    kind, start = "", 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        own = tag[2:] if tag != OUTSIDE else ""
        if kind and (own != kind or tag.startswith("B-")):
            found.append((kind, start, place))
            kind = ""
        if own and not kind:
            kind, start = own, place
    return found


def entity_f1(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> float:
    """Return the micro-averaged F1 over entities: type, first and last word must all be right.

    Args:
        pairs: True and predicted tags of each text.

    Returns:
        Between 0 and 1; 0 where there is nothing to find and nothing was found.
    """
    hits = total = 0
    for labels, predictions in pairs:
        wanted, found = set(spans(labels)), set(spans(predictions))
        hits += len(wanted & found)
        total += len(wanted) + len(found)
    return 2 * hits / total if total else 0.0
