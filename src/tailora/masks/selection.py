"""From scores to entries: always by index, always exactly as many as asked for."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from tailora.errors import UserError

Selection = Literal["top", "per-tensor", "random", "reverse"]
Zero = Literal["b_only", "after_warmup", "per_tensor", "nonzero_init"]


def count_kept(keep: float | int, total: int) -> int:
    """Return how many entries ``keep`` means.

    Args:
        keep: A share in ``(0, 1]`` as a float (rounded down), or a number of entries as an int.
        total: Number of candidate entries.

    Returns:
        The number, from 1 to ``total``.

    Raises:
        UserError: It is neither.
    """
    if isinstance(keep, bool) or not hasattr(keep, "__float__"):
        raise UserError(f"keep={keep!r} must be a share in (0, 1] such as 0.5, or a number of entries such as 200_000")
    if hasattr(keep, "__index__"):
        count = operator.index(keep)  # type: ignore[arg-type]
        if not 1 <= count <= total:
            raise UserError(f"keep={count} is no number of entries from 1 to {total:,}; a share is written as a float")
        return count
    if not 0 < keep <= 1:
        raise UserError(f"keep={keep!r} is no share in (0, 1]; for a number of entries write an integer")
    if int(total * keep) < 1:
        raise UserError(f"keep={keep!r} of {total:,} candidate entries is not even one; keep more")
    return int(total * keep)


def select(
    scores: Mapping[str, Tensor], count: int, selection: Selection = "top", zero: Zero = "b_only", seed: int = 0
) -> tuple[dict[str, Tensor], int]:
    """Choose entries by their scores.

    Order: higher score first (lower for ``reverse``), then the earlier entry.  Entries whose score is zero come last,
    first in ``reverse``, in a random order; with ``zero="b_only"`` they are no candidates.  With ``zero="per_tensor"``
    every tensor gives its share.

    Args:
        scores: Parameter name to scores of its shape, finite and not negative.
        count: How many entries in all.
        selection: ``top`` (of all), ``per-tensor`` (every tensor gives in proportion to its size), ``random``, or
            ``reverse`` (the lowest; with ``b_only`` the lowest that are not zero).
        zero: What is done about scores of zero.
        seed: For everything drawn.

    Returns:
        Parameter name to the chosen entries (int32, sorted, numbered within the tensor), and how many of them were
        drawn among scores of zero.

    Raises:
        UserError: There are fewer entries than asked for whose score says anything.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = {name: tensor.numel() for name, tensor in scores.items()}
    flat = {name: tensor.detach().reshape(-1).cpu() for name, tensor in scores.items()}
    if selection == "random":
        chosen = torch.zeros(sum(sizes.values()), dtype=torch.bool)
        chosen[torch.randperm(len(chosen), generator=generator)[:count]] = True
        return _apart(chosen, sizes), 0
    if selection == "per-tensor" or zero == "per_tensor":
        return _by_tensor(flat, _quotas(sizes, count), selection, zero, generator)
    joined = torch.cat(list(flat.values()))
    if zero == "b_only":
        allowed = joined > 0
        _enough(count, allowed, "all tensors together")
        signed = -joined if selection == "reverse" else joined
        return _apart(_spread(allowed, best(signed[allowed], count)), sizes), 0
    chosen, drawn = _zeros_at_random(joined, count, generator, lowest=selection == "reverse")
    return _apart(chosen, sizes), drawn


def best(values: Tensor, count: int) -> Tensor:
    """Mark the largest values; of equal ones, the earlier.

    Args:
        values: ``[n]``, not NaN.
        count: How many, at most n.

    Returns:
        bool ``[n]`` with exactly ``count`` true entries.
    """
    if count == 0:
        return torch.zeros(len(values), dtype=torch.bool)
    least = values.kthvalue(len(values) - count + 1).values
    chosen = values > least
    ties = (values == least).nonzero()[:, 0]
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen


def _by_tensor(
    flat: Mapping[str, Tensor], quotas: Mapping[str, int], selection: Selection, zero: Zero, generator: torch.Generator
) -> tuple[dict[str, Tensor], int]:
    """Choose within every tensor."""
    found: dict[str, Tensor] = {}
    drawn = 0
    for name, values in flat.items():
        quota, nonzero = quotas[name], values > 0
        lowest = selection == "reverse"
        if zero == "b_only":
            _enough(quota, nonzero, repr(name))
            signed = -values if lowest else values
            found[name] = _spread(nonzero, best(signed[nonzero], quota)).nonzero()[:, 0].int()
            continue
        chosen, few = _zeros_at_random(values, quota, generator, lowest=lowest)
        drawn += few
        found[name] = chosen.nonzero()[:, 0].int()
    return found, drawn


def _zeros_at_random(values: Tensor, count: int, generator: torch.Generator, *, lowest: bool) -> tuple[Tensor, int]:
    """Mark the best values and, where they do not suffice, some of the zeros; return also how many zeros.

    Zeros say nothing about each other (a whole factor, or the weights of units that no example reaches): they come
    last, first in reverse, in a random order.
    """
    nonzero = values > 0
    zeros = (~nonzero).nonzero()[:, 0]
    few = min(len(zeros), count) if lowest else count - min(int(nonzero.sum()), count)
    chosen = _spread(nonzero, best(-values[nonzero] if lowest else values[nonzero], count - few))
    chosen[zeros[torch.randperm(len(zeros), generator=generator)[:few]]] = True
    return chosen, few


def _quotas(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Deal entries in proportion to size; what rounding leaves over goes to the largest remainders, then in order."""
    total = sum(sizes.values())
    quotas = {name: count * size // total for name, size in sizes.items()}
    order = sorted(sizes, key=lambda name: -(count * sizes[name] % total))
    for name in order[: count - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _spread(allowed: Tensor, chosen: Tensor) -> Tensor:
    """Return marks over all entries from marks over the allowed ones."""
    full = torch.zeros_like(allowed)
    full[allowed] = chosen
    return full


def _apart(chosen: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Split marks over the joined entries into entry numbers of each tensor."""
    pieces: Any = chosen.split(list(sizes.values()))
    return {name: piece.nonzero()[:, 0].int() for name, piece in zip(sizes, pieces, strict=True)}


def _enough(count: int, allowed: Tensor, where: str) -> None:
    """Refuse to fill a mask with entries whose score is zero, which would be a choice by position."""
    known = int(allowed.sum())
    if count > known:
        raise UserError(
            f"{count:,} entries of {where} are asked for and only {known:,} of {len(allowed):,} have a Fisher that is "
            "not zero (LoRA's A has none while B is zero); keep fewer, give more batches, or choose "
            "zero='after_warmup' or zero='per_tensor'"
        )
