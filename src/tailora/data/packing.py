"""Packing: short examples one after the other in blocks of equal length, so that no step is spent on padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

IGNORED = -100
"""The label that does not count."""


def pack(examples: Iterable[dict[str, Any]], length: int, end: int | None) -> list[dict[str, list[int]]]:
    """Concatenate examples and cut them into blocks.

    No token is lost, the order is kept, and every token keeps its label.  An example may go on in the next block, and
    attention reaches across the examples of a block.

    Args:
        examples: Tokenised examples with ``input_ids`` and ``labels``.
        length: Tokens per block; only the last one may be shorter.
        end: End-of-text token, put between examples where the one before does not end with it; ``None`` leaves it
            out.  A token put in does not count in the loss.

    Returns:
        Blocks with ``input_ids`` and ``labels``.
    """
    return list(packed(examples, length, end))


def packed(examples: Iterable[dict[str, Any]], length: int, end: int | None) -> Iterator[dict[str, list[int]]]:
    """Yield the blocks of ``pack`` as soon as each is full.

    Args:
        examples: As for ``pack``; read one by one.
        length: As for ``pack``.
        end: As for ``pack``.

    Yields:
        Blocks with ``input_ids`` and ``labels``.
    """
    ids: list[int] = []
    labels: list[int] = []
    last: list[int] = []
    for example in examples:
        # Chat templates often write a line break after the end token: then the text has ended as well.
        if last and end is not None and end not in last:
            ids.append(end)
            labels.append(IGNORED)
            last.append(end)
        ids += example["input_ids"]
        labels += example["labels"]
        last = (last + example["input_ids"])[-2:]
        while len(ids) >= length:
            yield {"input_ids": ids[:length], "labels": labels[:length]}
            ids, labels = ids[length:], labels[length:]
    if ids:
        yield {"input_ids": ids, "labels": labels}
