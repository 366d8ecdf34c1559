"""Intrinsic dimension of the hidden states at both ends of every block, with replicates that show its noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tailora.errors import UserError, unknown_name
from tailora.geometry.estimators import METHODS, checked_options, estimate_from
from tailora.geometry.nearest import nearest, restricted
from tailora.signals.base import Context
from tailora.signals.blocks import Block
from tailora.signals.hidden_states import States
from tailora.targets import Target

REPLICATES = 20
"""Random halves of the rows that an estimate is repeated on."""


@dataclass(frozen=True)
class BlockDimensions:
    """The dimensions at both ends of every block.

    Attributes:
        blocks: The blocks in the model's order.
        values: float64 ``[n_blocks, 2, 1 + replicates]``: input and output; the estimate on all rows, then on every
            random half of them.  NaN where the states have no dimension (all rows equal).
        duplicates: int64 ``[n_blocks, 2]``: rows left out because an earlier one is identical.
        examples: Rows before that.
        method: The method and its options in words.
    """

    blocks: tuple[Block, ...]
    values: np.ndarray
    duplicates: np.ndarray
    examples: int
    method: str


def intrinsic_dimension_signal(
    states: States, targets: Sequence[Target], seed: int, replicates: int = REPLICATES, **estimator: Any
) -> np.ndarray:
    """Return the signal ``intrinsic_dimension``.

    Args:
        states: What ``BlockStates.result`` returned.
        targets: The targets, in the order of the result.
        seed: Of the random halves; the same halves are used for every block.
        replicates: How many halves, B.
        **estimator: ``method`` and its options, as ``tailora.intrinsic_dimension`` takes them.

    Returns:
        float64 ``[n_targets, 2, 1 + B]``, dimensions: ``[:, 0]`` of the block's input and ``[:, 1]`` of its output;
        ``[..., 0]`` the estimate and ``[..., 1:]`` the replicates.  NaN for targets outside of blocks.

    Raises:
        UserError: An option cannot be used or there are too few rows.
    """
    return per_target(block_dimensions(states, seed, replicates, **estimator), targets)


def intrinsic_dimension(context: Context, statistics: Any = None) -> np.ndarray:
    """Return the dimensions at both ends of each target's block; see ``intrinsic_dimension_signal``.

    The context's option ``intrinsic_dimension`` is a mapping with ``replicates``, ``method`` and the method's options.

    Args:
        context: Targets, seed, options and, in its cache, the collected ``states``.
        statistics: Not used.

    Returns:
        float64 ``[n_targets, 2, 1 + B]``; NaN for targets outside of blocks.
    """
    options = context.options.get("intrinsic_dimension", {})
    return intrinsic_dimension_signal(context.cache["states"], context.targets, context.seed, **options)


def checked_estimator(given: Any) -> tuple[str, dict[str, Any], int]:
    """Return what the option ``intrinsic_dimension`` of a profile asks for.

    Args:
        given: A mapping with ``replicates``, ``method`` and the method's options, each of which may be missing.

    Returns:
        The method, all of its options, and the number of replicates.

    Raises:
        UserError: It is no mapping, or a value cannot be used.
    """
    if not isinstance(given, Mapping):
        raise UserError(
            f"option intrinsic_dimension={given!r} must be a mapping, such as {{'method': 'twonn', 'replicates': 20}}"
        )
    options = dict(given)
    method, replicates = options.pop("method", "twonn"), options.pop("replicates", REPLICATES)
    if isinstance(replicates, bool) or not isinstance(replicates, int) or replicates < 0:
        raise UserError(f"replicates={replicates!r} must be a whole number of at least 0")
    for name in options:
        if name not in METHODS[method].options:
            raise unknown_name(f"option of method {method!r}", str(name), METHODS[method].options)
    return method, checked_options(method, options), replicates


def per_target(dimensions: BlockDimensions, targets: Sequence[Target]) -> np.ndarray:
    """Give every target the dimensions of its block.

    Args:
        dimensions: Of the blocks.
        targets: The targets.

    Returns:
        float64 ``[n_targets, 2, 1 + B]``, NaN for targets outside of the blocks.
    """
    place = {(block.stack, block.depth): index for index, block in enumerate(dimensions.blocks)}
    found = np.full((len(targets), *dimensions.values.shape[1:]), np.nan)
    for index, target in enumerate(targets):
        block = place.get((target.stack, -1 if target.depth is None else target.depth))
        if block is not None:
            found[index] = dimensions.values[block]
    return found


def block_dimensions(
    states: States, seed: int, replicates: int = REPLICATES, *, method: str = "twonn", **options: Any
) -> BlockDimensions:
    """Estimate the dimension at both ends of every block.

    Rows identical to an earlier one are dropped first, end by end, and counted.  A replicate is the estimate on half of
    the N rows, drawn without replacement (drawing with replacement would make duplicates, which have no ratio of
    distances); every end gets the same halves, so differences between ends are paired.  The spread of a statistic over
    halves equals its standard error on all rows where the statistic is nearly linear in the rows: the variance over
    subsamples of m out of N is ``(1/m - 1/N) sigma^2``, which at m = N/2 is ``sigma^2 / N``.  Nearest-neighbour
    ratios change with the rows drawn, which makes the spread somewhat larger than that; see docs/geometry.md.

    Args:
        states: What ``BlockStates.result`` returned.
        seed: Of the random halves.
        replicates: How many.
        method: A registered method.
        **options: Its options.

    Returns:
        The dimensions.

    Raises:
        UserError: An option cannot be used or there are too few rows.
    """
    method, settings, replicates = checked_estimator({"method": method, "replicates": replicates, **options})
    k = int(settings.get("k", METHODS[method].k))
    if states.examples // 2 <= max(k, 10):
        raise UserError(
            f"{states.examples} examples are too few for an intrinsic dimension with {method} and halves of them as "
            f"replicates; profile at least {2 * max(k, 10) + 2}, better 2,500"
        )
    halves = _halves(states.examples, replicates, seed)
    done: dict[int, tuple[np.ndarray, int]] = {}
    values = np.full((len(states.blocks), 2, 1 + replicates), np.nan)
    duplicates = np.zeros((len(states.blocks), 2), dtype=np.int64)
    for index in range(len(states.blocks)):
        for side in (0, 1):
            slot = states.slot(index, side)
            if slot not in done:
                done[slot] = _one_end(states.array(index, side), halves, k, method, settings)
            values[index, side], duplicates[index, side] = done[slot]
    words = ", ".join([method, *(f"{name} {value}" for name, value in settings.items())])
    return BlockDimensions(states.blocks, values, duplicates, states.examples, words)


def _halves(count: int, replicates: int, seed: int) -> list[np.ndarray]:
    """Return random halves of the rows, each ascending."""
    generator = np.random.default_rng(seed)
    return [np.sort(generator.permutation(count)[: count // 2]) for _ in range(replicates)]


def _one_end(
    rows: np.ndarray, halves: Sequence[np.ndarray], k: int, method: str, settings: dict[str, Any]
) -> tuple[np.ndarray, int]:
    """Return the estimate and its replicates at one end, and the number of rows dropped as duplicates."""
    found = np.full(1 + len(halves), np.nan)
    first = first_of_each(rows)
    dropped = len(rows) - len(first)
    if len(first) <= max(k, 2) + 1:
        return found, dropped
    points = torch.from_numpy(np.array(rows[first]))
    # Enough neighbours that a half nearly always holds k of them: k in the mean and six standard deviations more.
    wide = min(len(first) - 1, 2 * k + int(6 * np.sqrt(2 * k)) + 8) if halves else k
    known = nearest(points, wide)
    found[0] = _estimate(points, known, method, settings)
    position = np.full(len(rows), -1, dtype=np.int64)
    position[first] = np.arange(len(first))
    for number, half in enumerate(halves, start=1):
        part = position[half]
        part = part[part >= 0]
        if len(part) > max(k, 2) + 1:
            subset = points[torch.from_numpy(part)]
            found[number] = _estimate(subset, restricted(points, known, part, k), method, settings)
    return found, dropped


def _estimate(points: Tensor, neighbours: Any, method: str, settings: dict[str, Any]) -> float:
    """Return one estimate, NaN where there are too few points for one."""
    try:
        return estimate_from(points, neighbours, method, settings).value
    except UserError:
        return float("nan")


def first_of_each(rows: np.ndarray) -> np.ndarray:
    """Return which rows are not identical to an earlier one.

    Args:
        rows: float ``[N, h]``.

    Returns:
        int64, ascending.
    """
    # Adding zero makes the two zeros one, so that equal rows have equal bytes.
    exact = np.ascontiguousarray(rows + np.zeros((), dtype=rows.dtype))
    keys = exact.view(np.dtype((np.void, exact.dtype.itemsize * exact.shape[1]))).reshape(-1)
    return np.sort(np.unique(keys, return_index=True)[1])
