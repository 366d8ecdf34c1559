"""Packing: short examples one after the other in blocks of equal length, so that no step is spent on padding."""

from __future__ import annotations

from collections.abc import Iterable
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
    ids: list[int] = []
    labels: list[int] = []
    for example in examples:
        # Chat templates often write a line break after the end token: then the text has ended as well.
        if ids and end is not None and end not in ids[-2:]:
            ids.append(end)
            labels.append(IGNORED)
        ids += example["input_ids"]
        labels += example["labels"]
    return [
        {"input_ids": ids[start : start + length], "labels": labels[start : start + length]}
        for start in range(0, len(ids), length)
    ]
