"""Planted updates: which targets get one, of which rank, and the matrices themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tailora.errors import UserError
from tailora.lab.spec import Planting
from tailora.placement import select
from tailora.targets import Target


def planted_ranks(targets: Sequence[Target], planting: Planting, generator: torch.Generator) -> dict[str, int]:
    """Draw the planted ranks.

    Args:
        targets: The candidates.
        planting: The rule.
        generator: Where the draws come from.

    Returns:
        Name of every candidate, in order, to its planted rank; 0 where nothing is planted.

    Raises:
        UserError: The rule plants nothing.
    """
    pool = select(targets, _drawn_placement(planting.placement, targets, generator))
    count = max(1, round(planting.share * len(pool)))
    order = torch.randperm(len(pool), generator=generator).tolist()
    if planting.law == "correlated":
        found = _walks(pool, planting, generator)
        chosen = sorted(found, key=lambda name: -found[name])[:count]
        # The walk's heights are levels, not ranks: the highest gets the largest rank, the last one chosen the smallest.
        low, high = found[chosen[-1]], found[chosen[0]]
        span = max(high - low, 1e-12)
        ranks = {
            name: round(planting.low + (planting.high - planting.low) * (found[name] - low) / span) for name in chosen
        }
    elif planting.law == "power":
        ranks = {
            pool[index].name: round(planting.high / place**planting.exponent)
            for place, index in enumerate(order[:count], start=1)
        }
    elif planting.law == "same":
        ranks = {pool[index].name: planting.high for index in order[:count]}
    else:
        drawn = torch.randint(planting.low, planting.high + 1, (count,), generator=generator).tolist()
        ranks = {pool[index].name: rank for index, rank in zip(order[:count], drawn, strict=True)}
    capped = {target.name: min(ranks.get(target.name, 0), target.max_rank) for target in targets}
    if not any(capped.values()):
        raise UserError(
            f"planting with placement {planting.placement!r} plants no rank at all; raise its share or high"
        )
    return capped


def _drawn_placement(rule: str, targets: Sequence[Target], generator: torch.Generator) -> str:
    """Replace ``{roles:2}`` and ``{layers:2}`` by what was drawn."""
    roles = sorted({target.role for target in targets if target.depth is not None})
    depths = sorted({target.depth for target in targets if target.depth is not None})

    def draw(found: re.Match[str]) -> str:
        wanted = int(found[2])
        if found[1] == "roles":
            picked = torch.randperm(len(roles), generator=generator)[:wanted].tolist()
            return "role:" + "+".join(roles[index] for index in sorted(picked))
        first = int(torch.randint(0, max(1, len(depths) - wanted + 1), (1,), generator=generator))
        return f"layers:{depths[first]}-{depths[min(first + wanted, len(depths)) - 1]}"

    return re.sub(r"\{(roles|layers):(\d+)\}", draw, rule)


def _walks(pool: Sequence[Target], planting: Planting, generator: torch.Generator) -> dict[str, float]:
    """Return a stationary Gaussian walk along the depth for every role."""
    found: dict[str, float] = {}
    last: dict[tuple[str, str, bool], float] = {}
    for target in sorted(pool, key=lambda t: -1 if t.depth is None else t.depth):
        key = (target.stack, target.role, target.cross_attention)
        step = float(torch.randn((), generator=generator))
        memory = planting.memory
        value = step if key not in last else memory * last[key] + (1 - memory**2) ** 0.5 * step
        last[key] = found[target.name] = value
    return {target.name: found[target.name] for target in pool}


def sizes(targets: Sequence[Target], ranks: Mapping[str, int], planting: Planting) -> dict[str, float]:
    """Return every planted update's Frobenius norm over that of its weight.

    Args:
        targets: The candidates.
        ranks: Target name to planted rank.
        planting: The rule.

    Returns:
        Name of every planted target to its relative size.
    """
    mean = sum(target.cost(1) for target in targets) / len(targets)
    found = {}
    for target in targets:
        rank = ranks[target.name]
        if rank:
            by_rank = rank / planting.high if planting.by_rank else 1.0
            by_cost = target.cost(1) / mean if planting.by_cost else 1.0
            found[target.name] = planting.size * (by_rank * by_cost) ** 0.5
    return found


def plant(
    model: nn.Module,
    ranks: Mapping[str, int],
    relative: Mapping[str, float],
    decay: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Add an update of the given rank to every planted matrix.

    An update is ``relative * ||W|| * U diag(s) V^T`` with orthonormal random ``U`` and ``V``, ``s_k`` in proportion to
    ``k**-decay`` and ``||s|| = 1``.

    Args:
        model: The teacher to be; changed.
        ranks: Target name to planted rank.
        relative: What ``sizes`` returned.
        decay: How the singular values fall.
        generator: Where the directions come from.

    Returns:
        Name of every planted target to the update's singular values, float64 ``[rank]``, falling.
    """
    spectra = {}
    for name, size in relative.items():
        rank = ranks[name]
        module: Any = model.get_submodule(name)
        weight: Tensor = module.weight
        values = torch.arange(1, rank + 1, dtype=torch.float64) ** -decay
        values *= size * float(weight.double().norm()) / values.norm()
        left, right = (
            torch.linalg.qr(torch.randn((side, rank), generator=generator, dtype=torch.float64))[0]
            for side in weight.shape
        )
        # Conv1D stores the transpose, which has the same rank, norm and singular values.
        weight.data.add_(((left * values) @ right.T).to(weight.dtype))
        spectra[name] = values
    return spectra
