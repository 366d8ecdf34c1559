"""How a recipe, a budget and a set of targets become ranks and alphas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tailora.adapter_kinds import ADAPTER_KINDS
from tailora.allocation import ALLOCATORS, Problem, allocate, rank_limits, unit_costs
from tailora.allocation.explicit import read_ranks
from tailora.budget import Budget
from tailora.errors import BudgetError, PlacementError, TailoraError, UserError
from tailora.initialisation import INITIALISATIONS
from tailora.placement import select
from tailora.recipes import Recipe, Scaling, load_recipe
from tailora.targets import Target

_NAMES = {
    "lora": "LoRA",
    "dora": "DoRA",
    "loha": "LoHa",
    "ia3": "IA3",
    "bottleneck": "bottleneck adapters",
    "weights": "a mask",
}


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
        kept: How many of the adapter's parameters a mask lets train; ``None`` without a mask.
    """

    candidates: tuple[Target, ...]
    ranks: tuple[int, ...]
    budget_params: int
    asked_params: int
    r_max: int | None
    budgeted: bool = True
    kept: int | None = None


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
        PlacementError: The recipe's placement leaves none of the candidates, or one that cannot start as it says.
    """
    candidates = tuple(select(targets, placement))
    chosen = set(select(targets, recipe.placement))
    kind = ADAPTER_KINDS[recipe.adapter.form]
    active = tuple(t for t in candidates if t in chosen and kind.fits(t))
    if not active:
        raise PlacementError(
            f"recipe {recipe.name!r} places {_NAMES[recipe.adapter.form]} on {recipe.placement!r}, which is none of "
            f"the {len(candidates)} candidates of placement {placement!r} that can have it; widen one of the two"
        )
    start = INITIALISATIONS[recipe.initialisation.name]
    if stranger := next((target for target in active if target.kind not in start.kinds), None):
        raise PlacementError(
            f"recipe {recipe.name!r} has the initialisation {recipe.initialisation.name!r}, which target "
            f"{stranger.name!r} of the kind {stranger.kind!r} cannot have; exclude it from the placement {placement!r}"
        )
    asked = None if budget is None else budget.params(candidates, model_params=model_params)
    position = {target: index for index, target in enumerate(targets)}
    rows = np.array([position[target] for target in active])
    narrowed = {name: np.asarray(values)[rows] for name, values in signals.items()}
    if asked is None:
        ranks, r_max = _prescribed(active, recipe, 0, narrowed, seed), None
        asked = limit = total_cost(active, ranks, recipe)
        kept = _kept(recipe, asked, asked)
    elif recipe.mask is None:
        ranks, limit, r_max = _active_ranks(active, recipe, asked, narrowed, seed)
        kept = None
    else:
        # The mask keeps one budget of a larger adapter, so the plan trains exactly what was asked for.
        grown = _grown(active, recipe, asked)
        ranks, _, r_max = _active_ranks(active, recipe, grown, narrowed, seed)
        limit = asked
        kept = _kept(recipe, asked, total_cost(active, ranks, recipe))
    by_target = dict(zip(active, ranks, strict=True))
    dealt = tuple(by_target.get(target, 0) for target in candidates)
    return Dealt(candidates, dealt, limit, asked, r_max, budgeted=budget is not None, kept=kept)


def total_cost(targets: Sequence[Target], ranks: Sequence[int], recipe: Recipe) -> int:
    """Return what ranks cost under a recipe's kind of adapter.

    Args:
        targets: The targets.
        ranks: Their ranks; 0 costs nothing.
        recipe: The recipe.

    Returns:
        Adapter parameters.
    """
    return sum(cost_of(target, rank, recipe) for target, rank in zip(targets, ranks, strict=True))


def cost_of(target: Target, rank: int, recipe: Recipe) -> int:
    """Return what a rank costs on one target under a recipe's kind of adapter.

    Args:
        target: The target.
        rank: Its rank, 0 or more.
        recipe: The recipe.

    Returns:
        Adapter parameters.
    """
    return ADAPTER_KINDS[recipe.adapter.form].cost(target, rank) if rank else 0


def _grown(active: tuple[Target, ...], recipe: Recipe, asked: int) -> int:
    """Return the parameters of the adapter that a mask chooses from."""
    slot, mask = recipe.allocation, recipe.mask
    assert mask is not None
    limits = rank_limits(
        active, _resolve_r_max(slot.r_max, asked, active, recipe), slot.multiple, adapter=recipe.adapter.form
    )
    most = total_cost(active, [int(limit) for limit in limits], recipe)
    if most < asked:
        raise BudgetError(
            f"the budget of {_amount(asked)} parameters is more than the largest adapter that recipe {recipe.name!r} "
            f"can choose from has ({most:,}); lower the budget or widen the placement"
        )
    return most if mask.grow == "largest" else min(most, math.ceil(float(mask.grow) * asked))


def _kept(recipe: Recipe, asked: int, adapter: int) -> int | None:
    """Return how many parameters the mask keeps."""
    if recipe.mask is None:
        return None
    if adapter < asked:
        raise BudgetError(
            f"the mask of recipe {recipe.name!r} shall keep {asked:,} parameters of an adapter that has {adapter:,}; "
            "raise the mask's 'grow' or lower the budget"
        )
    return asked


def _prescribed(
    active: tuple[Target, ...], recipe: Recipe, asked: int, signals: Mapping[str, np.ndarray], seed: int
) -> list[int]:
    """Return the ranks of a rule that writes whole numbers itself."""
    slot = recipe.allocation
    rule = ALLOCATORS[slot.name].faithful
    if rule is None:
        raise TailoraError(f"allocator {slot.name!r} prescribes no ranks; give a budget")
    width = max(target.max_rank for target in active)
    problem = Problem(
        active, unit_costs(active, width, adapter=recipe.adapter.form), signals, asked, seed, slot.options
    )
    return [int(rank) for rank in rule(problem)]


def _active_ranks(
    active: tuple[Target, ...], recipe: Recipe, asked: int, signals: Mapping[str, np.ndarray], seed: int
) -> tuple[list[int], int, int | None]:
    """Return the ranks of the active targets, the parameters they may take and the common rank limit."""
    slot, form = recipe.allocation, recipe.adapter.form
    if slot.faithful or slot.name == "explicit":
        ranks = _prescribed(active, recipe, asked, signals, seed)
        cost = total_cost(active, ranks, recipe)
        if slot.name == "explicit" and cost > asked:
            raise BudgetError(
                f"the explicit ranks cost {cost:,} parameters, above the budget of {asked:,}; lower a rank or raise it"
            )
        # A published rule costs what it costs: its own total is then the budget, and the asked one stays on record.
        return ranks, cost if slot.faithful else asked, None
    r_max = _resolve_r_max(slot.r_max, asked, active, recipe)
    limits = rank_limits(active, r_max, slot.multiple, adapter=form)
    width = int(limits.max(initial=0))
    if r_max is not None and r_max < slot.r_min:
        raise BudgetError(f"r_max {r_max} is below r_min {slot.r_min}; raise r_max or the budget, or lower r_min")
    if width == 0:
        raise BudgetError(f"no rank is possible: r_max {r_max} leaves no multiple of {slot.multiple}; raise r_max")
    whole = total_cost(active, [int(limit) for limit in limits], recipe)
    if not ADAPTER_KINDS[form].sized and asked >= whole:
        # A kind of one size, such as IA3, costs what it costs.
        return [int(limit) for limit in limits], whole, r_max
    _refuse_impossible(active, asked, limits, slot.multiple, recipe)
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
    slot, form = recipe.allocation, recipe.adapter.form
    full = int(limits.max())
    uniform = asked / total_cost(active, [1] * len(active), recipe)
    shown = min(full, max(16, slot.r_min + slot.multiple, math.ceil(4 * uniform)))
    while True:
        width = min(full, -(-shown // slot.multiple) * slot.multiple)
        costs = unit_costs(active, width, adapter=form)
        gains = ALLOCATORS[slot.name].gains(Problem(active, costs, signals, asked, seed, slot.options))
        dealt = allocate(
            gains, costs, asked, limits=np.minimum(limits, width), r_min=slot.r_min, multiple=slot.multiple
        )
        if width == full or not ((dealt == width // slot.multiple * slot.multiple) & (limits > dealt)).any():
            return dealt
        shown *= 4


def _resolve_r_max(r_max: int | str | None, budget: int, active: Sequence[Target], recipe: Recipe) -> int | None:
    """Turn ``"4x"`` into a rank: that many times the uniform rank the budget buys on the active targets."""
    if r_max is None or isinstance(r_max, int):
        return r_max
    kind = ADAPTER_KINDS["lora" if recipe.adapter.dora else recipe.adapter.form]
    return resolve_rank(r_max, budget / sum(kind.cost(target, 1) for target in active))


def resolve_rank(rank: int | str, uniform: float) -> int:
    """Turn ``"4x"`` into a rank.

    Args:
        rank: A number, or a factor.
        uniform: The rank that the budget buys on every target, which need not be whole.

    Returns:
        The rank, at least 1.
    """
    return rank if isinstance(rank, int) else max(1, math.ceil(float(rank[:-1]) * uniform - 1e-9))


def _refuse_impossible(
    active: Sequence[Target], budget: int, limits: np.ndarray, multiple: int, recipe: Recipe
) -> None:
    """Refuse a budget that cannot buy one rank, or that no plan can spend."""
    cheapest = min(cost_of(t, multiple, recipe) for t, limit in zip(active, limits, strict=True) if limit >= multiple)
    if budget < cheapest:
        raise BudgetError(
            f"the budget of {budget:,} parameters is below the smallest plan: rank {multiple} on the cheapest target "
            f"costs {cheapest:,}; raise it"
        )
    most = total_cost(active, [int(limit) for limit in limits], recipe)
    dearest = max(cost_of(t, multiple, recipe) for t in active)
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


def chosen_recipe(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Return a recipe as it is asked for, so that what it reads is known before anything is measured.

    Args:
        recipe: A recipe's name, file, mapping or object; ``explicit`` takes its ranks from the overrides.
        overrides: As for ``override_allocation``; ``ranks`` for ``explicit``.

    Returns:
        The recipe with its allocation overridden, checked.

    Raises:
        UserError: There is no such recipe, an override is wrong, or ``explicit`` has no ranks.
    """
    if recipe != "explicit":
        return override_allocation(load_recipe(recipe), overrides)
    further = dict(overrides)
    ranks = further.pop("ranks", None)
    if ranks is None:
        raise UserError("recipe 'explicit' needs ranks: a file or a mapping of target names to ranks")
    # Read into the recipe itself, so that the plan does not depend on the file.
    allocation = {"name": "explicit", "options": {"ranks": read_ranks(ranks)}}
    written = {"name": "explicit", "title": "Ranks written down by hand", "allocation": allocation}
    return override_allocation(load_recipe(written), further)


def override_allocation(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe with bounds or options of its allocation slot replaced.

    Args:
        recipe: The recipe.
        overrides: Keys ``r_min``, ``r_max``, ``multiple``, ``faithful``; anything else is an option of the allocator.
            ``None`` leaves a key as it is.

    Returns:
        A new recipe, checked.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    if not given:
        return recipe
    data = recipe.to_dict()
    for key, value in given.items():
        if key in {"r_min", "r_max", "multiple", "faithful"}:
            data["allocation"][key] = value
        else:
            data["allocation"]["options"][key] = value
    bound = next((key for key in ("r_min", "r_max", "multiple") if key in given), None)
    if bound is not None and data["allocation"].get("faithful"):
        raise UserError(
            f"{bound}={given[bound]!r} has no effect on recipe {recipe.name!r}, whose published rule writes the ranks "
            "itself; leave it out, or fit the ranks to a budget with faithful=False"
        )
    return load_recipe(data)
