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
        strata: The class of each row: every class then gives its share, to the nearest row.

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
    """Draw ``held_out`` rows, from each class in proportion; the largest remainders make up the number."""
    groups: dict[str, list[int]] = {}
    for row, value in enumerate(strata):
        groups.setdefault(str(value), []).append(row)
    names = sorted(groups)
    wanted = {name: len(groups[name]) * held_out / len(strata) for name in names}
    counts = {name: int(wanted[name]) for name in names}
    by_remainder = sorted(names, key=lambda name: (counts[name] - wanted[name], name))
    for name in by_remainder[: held_out - sum(counts.values())]:
        counts[name] += 1
    draw = np.random.default_rng(0)
    drawn = [draw.choice(groups[name], size=counts[name], replace=False) for name in names]
    return sorted(int(row) for rows in drawn for row in rows)
