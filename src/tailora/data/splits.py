"""Drawing rows with private generators, so that every recipe and seed sees the same split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tailora.errors import DataError


def sample(rows: int, count: int | None, *, seed: int = 0) -> list[int]:
    """Draw ``count`` of ``rows`` row numbers without replacement.

    Args:
        rows: How many there are.
        count: How many to draw; ``None`` or more than there are means all.
        seed: Seed of a private generator.

    Returns:
        Row numbers in increasing order.
    """
    if count is None or count >= rows:
        return list(range(rows))
    drawn = np.random.default_rng(seed).choice(rows, size=count, replace=False)
    return sorted(int(row) for row in drawn)


def carve(
    rows: int, share: float, source: str, *, contiguous: bool = False, strata: Sequence[Any] | None = None
) -> tuple[list[int], list[int]]:
    """Cut rows into training and validation.

    Args:
        rows: How many there are.
        share: Share that goes to validation, above 0 and below 1.
        source: What is cut, for messages.
        contiguous: Take the end rather than random rows: neighbouring blocks of one text are not independent.
        strata: The class of each row: every class then gives its share, to the nearest row, except that no class
            leaves training entirely, nor validation if it has two rows, where the others can make up for it.

    Returns:
        Row numbers of training and validation, disjoint, both in increasing order.

    Raises:
        DataError: One side would be empty.
    """
    held_out = round(rows * share)
    if not 0 < held_out < rows:
        raise DataError(
            f"{source!r} has {rows} example(s), of which a validation share of {share:g} leaves one side empty; "
            "give task.evaluation or change task.validation"
        )
    if contiguous:
        return list(range(rows - held_out)), list(range(rows - held_out, rows))
    validation = sample(rows, held_out, seed=0) if strata is None else _stratified(strata, held_out)
    chosen = set(validation)
    return [row for row in range(rows) if row not in chosen], validation


def _stratified(strata: Sequence[Any], held_out: int) -> list[int]:
    """Draw ``held_out`` rows, from each class in proportion."""
    groups: dict[str, list[int]] = {}
    for row, value in enumerate(strata):
        groups.setdefault(str(value), []).append(row)
    counts = _shares({name: len(rows) for name, rows in groups.items()}, held_out)
    draw = np.random.default_rng(0)
    drawn = [draw.choice(groups[name], size=counts[name], replace=False) for name in sorted(groups)]
    return sorted(int(row) for rows in drawn for row in rows)


def _shares(sizes: dict[str, int], held_out: int) -> dict[str, int]:
    """Tell how many rows each class gives."""
    total = sum(sizes.values())
    counts = {name: size * held_out // total for name, size in sizes.items()}
    remainders = {name: size * held_out % total for name, size in sizes.items()}

    def turn(name: str) -> tuple[bool, bool, int, str]:
        # What divides evenly has its share; a class that has none yet comes before the largest remainders.
        return remainders[name] == 0, counts[name] > 0, -remainders[name], name

    able = [name for name in sorted(sizes, key=turn) if counts[name] + 1 < sizes[name]]
    for name in able[: held_out - sum(counts.values())]:
        counts[name] += 1
    while sum(counts.values()) < held_out:
        # Rare classes could only give by leaving training: the commonest gives in their place.
        counts[max(sorted(sizes), key=lambda name: sizes[name] - counts[name])] += 1
    return counts
