"""How a recipe, a budget and a set of targets become ranks and alphas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tailora.allocation import ALLOCATORS, Problem, allocate, rank_limits, unit_costs
from tailora.budget import Budget
from tailora.errors import BudgetError, PlacementError, TailoraError
from tailora.placement import select
from tailora.recipes import Recipe, Scaling
from tailora.targets import Target


@dataclass(frozen=True, slots=True)
class Dealt:
    """What planning decided.

    Attributes:
        candidates: The targets the budget counts.
        ranks: Rank per candidate, 0 where it is not adapted.
        budget_params: Parameters the plan may spend.
        asked_params: Parameters the user's budget came to; differs only for a published integer rule.
        r_max: The common rank limit that applied, or ``None``.
        budgeted: Whether a budget was given at all.
    """

    candidates: tuple[Target, ...]
    ranks: tuple[int, ...]
    budget_params: int
    asked_params: int
    r_max: int | None
    budgeted: bool = True


def deal(
    targets: Sequence[Target],
    recipe: Recipe,
    budget: Budget | None,
    *,
    placement: str,
    signals: Mapping[str, np.ndarray],
    model_params: int | None,
    seed: int,
) -> Dealt:
    """Choose the candidates, value their ranks and deal them.

    Args:
        targets: All targets of the source.
        recipe: What decides.
        budget: What may be spent, counted on the candidates; ``None`` lets ranks written down cost what they cost.
        placement: The rule that makes the candidates; the recipe's own placement narrows them.
        signals: Signal name to array, first axis as ``targets``.
        model_params: Parameters of the base model, where known.
        seed: For allocators that draw.

    Returns:
        The candidates and their ranks.

    Raises:
        BudgetError: No plan meets the budget.
        PlacementError: The recipe's placement leaves none of the candidates.
    """
    candidates = tuple(select(targets, placement))
    chosen = set(select(targets, recipe.placement))
    # A DoRA magnitude does not exist for tensors without a module: peft refuses it, so they are no candidates for it.
    active = tuple(t for t in candidates if t in chosen and not (recipe.adapter.dora and t.kind == "parameter"))
    if not active:
        raise PlacementError(
            f"recipe {recipe.name!r} places LoRA on {recipe.placement!r}, which is none of the {len(candidates)} "
            f"candidates of placement {placement!r}; widen one of the two"
        )
    asked = None if budget is None else budget.params(candidates, model_params=model_params)
    position = {target: index for index, target in enumerate(targets)}
    rows = np.array([position[target] for target in active])
    narrowed = {name: np.asarray(values)[rows] for name, values in signals.items()}
    if asked is None:
        ranks, r_max = _prescribed(active, recipe, 0, narrowed, seed), None
        asked = limit = sum(
            target.cost(rank, dora=recipe.adapter.dora) for target, rank in zip(active, ranks, strict=True)
        )
    else:
        ranks, limit, r_max = _active_ranks(active, recipe, asked, narrowed, seed)
    by_target = dict(zip(active, ranks, strict=True))
    dealt = tuple(by_target.get(target, 0) for target in candidates)
    return Dealt(candidates, dealt, limit, asked, r_max, budgeted=budget is not None)


def _prescribed(
    active: tuple[Target, ...], recipe: Recipe, asked: int, signals: Mapping[str, np.ndarray], seed: int
) -> list[int]:
    """Return the ranks of a rule that writes whole numbers itself."""
    slot = recipe.allocation
    rule = ALLOCATORS[slot.name].faithful
    if rule is None:
        raise TailoraError(f"allocator {slot.name!r} prescribes no ranks; give a budget")
    width = max(target.max_rank for target in active)
    problem = Problem(active, unit_costs(active, width, dora=recipe.adapter.dora), signals, asked, seed, slot.options)
    return [int(rank) for rank in rule(problem)]


def _active_ranks(
    active: tuple[Target, ...], recipe: Recipe, asked: int, signals: Mapping[str, np.ndarray], seed: int
) -> tuple[list[int], int, int | None]:
    """Return the ranks of the active targets, the parameters they may take and the common rank limit."""
    slot, dora = recipe.allocation, recipe.adapter.dora
    if slot.faithful or slot.name == "explicit":
        ranks = _prescribed(active, recipe, asked, signals, seed)
        cost = sum(t.cost(rank, dora=dora) for t, rank in zip(active, ranks, strict=True))
        if slot.name == "explicit" and cost > asked:
            raise BudgetError(
                f"the explicit ranks cost {cost:,} parameters, above the budget of {asked:,}; lower a rank or raise it"
            )
        # A published rule costs what it costs: its own total is then the budget, and the asked one stays on record.
        return ranks, cost if slot.faithful else asked, None
    r_max = _resolve_r_max(slot.r_max, asked, active)
    limits = rank_limits(active, r_max, slot.multiple)
    width = int(limits.max(initial=0))
    if r_max is not None and r_max < slot.r_min:
        raise BudgetError(f"r_max {r_max} is below r_min {slot.r_min}; raise r_max or the budget, or lower r_min")
    if width == 0:
        raise BudgetError(f"no rank is possible: r_max {r_max} leaves no multiple of {slot.multiple}; raise r_max")
    _refuse_impossible(active, asked, limits, slot.multiple, dora=dora)
    dealt = _fit(active, recipe, asked, signals, seed, limits)
    if not dealt.any():
        raise BudgetError(f"the budget of {asked:,} parameters bought no rank at all; raise it")
    return [int(rank) for rank in dealt], asked, r_max


def _fit(
    active: tuple[Target, ...],
    recipe: Recipe,
    asked: int,
    signals: Mapping[str, np.ndarray],
    seed: int,
    limits: np.ndarray,
) -> np.ndarray:
    """Fit an allocator to the budget, looking at no more ranks per target than are needed.

    A large matrix could take thousands of ranks.  Gains of a rank do not depend on how many follow, so a first look at
    a few times the uniform rank gives the same plan unless a target fills all it was shown; then more are shown.
    """
    slot, dora = recipe.allocation, recipe.adapter.dora
    full = int(limits.max())
    uniform = asked / sum(target.cost(1) for target in active)
    shown = min(full, max(16, slot.r_min + slot.multiple, math.ceil(4 * uniform)))
    while True:
        width = min(full, -(-shown // slot.multiple) * slot.multiple)
        costs = unit_costs(active, width, dora=dora)
        gains = ALLOCATORS[slot.name].gains(Problem(active, costs, signals, asked, seed, slot.options))
        dealt = allocate(
            gains, costs, asked, limits=np.minimum(limits, width), r_min=slot.r_min, multiple=slot.multiple
        )
        if width == full or not ((dealt == width // slot.multiple * slot.multiple) & (limits > dealt)).any():
            return dealt
        shown *= 4


def _resolve_r_max(r_max: int | str | None, budget: int, active: Sequence[Target]) -> int | None:
    """Turn ``"4x"`` into a rank: that many times the uniform rank the budget buys on the active targets."""
    if r_max is None or isinstance(r_max, int):
        return r_max
    uniform = budget / sum(target.cost(1) for target in active)
    return max(1, math.ceil(float(r_max[:-1]) * uniform - 1e-9))


def _refuse_impossible(active: Sequence[Target], budget: int, limits: np.ndarray, multiple: int, *, dora: bool) -> None:
    """Refuse a budget that cannot buy one rank, or that no plan can spend."""
    cheapest = min(t.cost(multiple, dora=dora) for t, limit in zip(active, limits, strict=True) if limit >= multiple)
    if budget < cheapest:
        raise BudgetError(
            f"the budget of {budget:,} parameters is below the smallest plan: rank {multiple} on the cheapest target "
            f"costs {cheapest:,}; raise it"
        )
    most = sum(t.cost(int(limit), dora=dora) for t, limit in zip(active, limits, strict=True))
    dearest = max(t.cost(multiple, dora=dora) for t in active)
    if budget >= most + dearest:
        raise BudgetError(
            f"the budget of {_amount(budget)} parameters is more than the largest ranks allowed on the {len(active)} "
            f"targets cost ({most:,}); lower the budget, raise r_max or widen the placement"
        )


def _amount(count: int) -> str:
    """Write a number of parameters; beyond what any model has, its digits would fill the screen."""
    return f"{count:,}" if count < 10**15 else f"{count:.3g}"


def alpha_for(rank: int, scaling: Scaling) -> float:
    """Return LoRA's alpha for a rank.

    Args:
        rank: The target's rank, at least 1.
        scaling: ``constant``: alpha = scale * r, so that ``alpha / r`` is the same everywhere; ``rslora``: one alpha,
            which peft divides by ``sqrt(r)``.

    Returns:
        alpha; whole where possible, since peft documents it as an integer.
    """
    alpha = scaling.scale * rank if scaling.kind == "constant" else scaling.alpha
    return int(alpha) if float(alpha).is_integer() else float(alpha)


def override_allocation(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe with bounds or options of its allocation slot replaced.

    Args:
        recipe: The recipe.
        overrides: Keys ``r_min``, ``r_max``, ``multiple``, ``faithful``; anything else is an option of the allocator.
            ``None`` leaves a key as it is.

    Returns:
        A new recipe, checked.
    """
    from tailora.recipes import load_recipe

    given = {key: value for key, value in overrides.items() if value is not None}
    if not given:
        return recipe
    data = recipe.to_dict()
    for key, value in given.items():
        if key in {"r_min", "r_max", "multiple", "faithful"}:
            data["allocation"][key] = value
        else:
            data["allocation"]["options"][key] = value
    return load_recipe(data)
