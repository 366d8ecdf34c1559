"""Who competes: every recipe that decides ranks of plain LoRA, with the evidence it asks for measured and counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailora.errors import TailoraError, UserError
from tailora.initialisation import INITIALISATIONS
from tailora.lab.losses import lab_loss
from tailora.lab.oracle import oracle_ranks
from tailora.lab.problems import PlantedProblem
from tailora.recipes import Recipe, list_recipes, load_recipe

if TYPE_CHECKING:
    from tailora.lab.courses import Factors
    from tailora.plans import Plan
    from tailora.profiles import Profile

UNIFORM = "lora"
ORACLE = "oracle"
_FORWARD = 1 / 3


@dataclass(frozen=True)
class Decision:
    """What a contestant decided on one problem.

    Attributes:
        name: The contestant.
        ranks: Name of every candidate to its rank.
        params: What these cost.
        token_passes: Forward and backward passes that the decision took, in tokens; a forward pass alone counts a
            third.  Training's own passes are counted in the same unit.
        start: Target name to the factors ``A [rank, in]`` and ``B [out, rank]`` to start from; ``None`` for peft's.
    """

    name: str
    ranks: Mapping[str, int]
    params: int
    token_passes: float = 0.0
    start: Factors | None = None


def contestant_names() -> list[str]:
    """Return every shipped recipe that decides ranks of plain LoRA, once where several have one allocation.

    Left out are recipes with a mask, another kind of adapter than LoRA or a training method of their own, published
    integer rules that do not keep to the budget, recipes with an initialisation of their own, and those whose placement
    and allocation another one has already.

    Returns:
        Names; ``lora``, the uniform baseline, first.
    """
    seen: dict[str, str] = {}
    for recipe in [load_recipe(UNIFORM), *list_recipes()]:
        plain = recipe.initialisation.name == "default"
        if plain and _decides_ranks(recipe) and not recipe.allocation.faithful:
            key = json.dumps([recipe.placement, recipe.allocation.model_dump(mode="json")], sort_keys=True)
            seen.setdefault(key, recipe.name)
    return list(seen.values())


def _decides_ranks(recipe: Recipe) -> bool:
    """Tell whether a recipe decides ranks of plain LoRA, and at most where they start."""
    return recipe.adapter.form == "lora" and recipe.mask is None and recipe.training.method == "standard"


def read_contestant(text: str) -> tuple[Recipe, dict[str, Any]]:
    """Read a contestant: a recipe's name or file, with options of its allocation behind it.

    Args:
        text: Such as ``spectral``, ``spectral:signal=gradient_cross_spectrum`` or ``pilot:pilot.share=0.2,r_max=12``.

    Returns:
        The recipe and what to override in its allocation.

    Raises:
        UserError: There is no such recipe, or it does more than decide ranks.
    """
    name, _, tail = text.partition(":")
    recipe = load_recipe(name)
    if not _decides_ranks(recipe):
        raise UserError(
            f"recipe {name!r} does more than decide ranks of plain LoRA, which is all that the laboratory compares; "
            f"choose among {', '.join(contestant_names())}"
        )
    overrides: dict[str, Any] = {}
    for part in filter(None, tail.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"contestant {text!r}: {part!r} is no 'option=value'; write it as in 'spectral:r_max=8'")
        overrides[key] = _value(value)
    slot = {key.removeprefix("pilot."): overrides.pop(key) for key in list(overrides) if key.startswith("pilot.")}
    if slot:
        data = recipe.to_dict()
        recipe = load_recipe(data | {"pilot": (data["pilot"] or {}) | slot})
    return recipe, overrides


def _value(text: str) -> Any:
    """Read a number, true or false; anything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def decide(
    problem: PlantedProblem, names: Sequence[str], budget: str, *, batch_size: int = 16
) -> tuple[list[Decision], dict[str, str]]:
    """Let contestants decide on a problem.

    The signals of all of them are measured once, on calibration batches with the training's own labels and loss; each
    contestant pays for what it reads as if it had been alone.

    Args:
        problem: The problem.
        names: Contestants as ``read_contestant`` takes them; ``oracle`` is known too, those with a pilot are passed
            over, since they decide in training.
        budget: What each may spend.
        batch_size: Sequences of a calibration batch.

    Returns:
        The decisions, and of those who could not decide the reason.

    Raises:
        UserError: A name or the budget cannot be read.
    """
    from tailora.plans import plan

    readings = {name: read_contestant(name) for name in names if name != ORACLE}
    names = [name for name in names if name == ORACLE or readings[name][0].pilot is None]
    readings = {name: readings[name] for name in names if name != ORACLE}
    allowed = plan(list(problem.targets), UNIFORM, budget).budget_params
    wanted = {name: _signals(recipe, overrides) for name, (recipe, overrides) in readings.items()}
    profiles, failed = _measure(problem, {s for signals in wanted.values() for s in signals}, batch_size)
    sums: dict[tuple[str, ...], Profile] = {}
    decisions, left_out = [], {}
    for name in names:
        if name == ORACLE:
            ranks = oracle_ranks(problem, allowed)
            decisions.append(Decision(ORACLE, ranks, sum(t.cost(ranks[t.name]) for t in problem.targets)))
            continue
        recipe, overrides = readings[name]
        broken = [failed[signal] for signal in wanted[name] if signal in failed]
        try:
            if broken:
                raise UserError(broken[0])
            made = plan(_source(problem, profiles, wanted[name]), recipe, budget, seed=problem.spec.seed, **overrides)
        except TailoraError as error:
            # A baseline that fails is the lab's own failure; another's is part of the result.
            if name == UNIFORM:
                raise
            left_out[name] = str(error)
            continue
        # What ranks and start are read from is measured in one pass.
        read = (*wanted[name], *INITIALISATIONS[recipe.initialisation.name].needs)
        passes = max((_passes(signal) for signal in read), default=0.0)
        tokens = problem.spec.calibration * problem.spec.length
        start = _start(problem, made, batch_size, sums)
        decisions.append(Decision(name, dict(made.ranks), made.total_params, passes * tokens, start))
    return decisions, left_out


def _start(problem: PlantedProblem, plan: Plan, size: int, sums: dict[tuple[str, ...], Profile]) -> Factors | None:
    """Return the factors that a plan's initialisation starts from; ``None`` where it is peft's.

    What was measured for one plan lies in ``sums`` and serves the next.
    """
    import torch

    from tailora.lab.students import initial_rows

    initialisation = INITIALISATIONS[plan.recipe.initialisation.name]
    if initialisation.rows is None:
        return None
    needs = initialisation.needs
    if needs not in sums:
        sums[needs] = _profiled(problem, needs, size, keep_sums=True)
    leading = initialisation.rows(sums[needs], plan.ranks)
    found = {}
    for entry in plan.targets:
        target, rank = entry.target, entry.rank
        if rank:
            a = initial_rows(target.name, target.shape[1], rank, problem.spec.seed)
            if target.name in leading:
                a[: len(leading[target.name])] = leading[target.name].to(a.dtype)
            found[target.name] = (a, torch.zeros(target.shape[0], rank))
    return found


def _signals(recipe: Recipe, overrides: Mapping[str, Any]) -> tuple[str, ...]:
    from tailora.planning import override_allocation

    return override_allocation(recipe, overrides).signals


def _passes(signal: str) -> float:
    """Return the passes over the calibration tokens that a signal takes."""
    from tailora.signals import SIGNALS
    from tailora.signals.newton import ITERATIONS, passes

    entry = SIGNALS[signal]
    if entry.solve is not None:
        return passes(ITERATIONS)
    if any(statistic.source == "gradients" for statistic in entry.needs):
        return 1.0
    return _FORWARD if entry.needs or entry.states else 0.0


def _measure(problem: PlantedProblem, signals: Iterable[str], size: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Measure signals, together where all can be; of those that fail alone, the reason."""
    wanted = sorted(signals)
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    if not wanted:
        return found, failed
    try:
        whole = _profiled(problem, wanted, size)
        return dict.fromkeys(wanted, whole), failed
    except TailoraError:
        pass
    for signal in wanted:
        try:
            found[signal] = _profiled(problem, (signal,), size)
        except TailoraError as error:
            failed[signal] = str(error)
    return found, failed


def _profiled(problem: PlantedProblem, signals: Sequence[str], size: int, **how: Any) -> Profile:
    """Measure signals on the calibration sequences, with the training's own loss."""
    from tailora.profiles import profile

    own = {"loss": lab_loss, "targets": problem.targets, "seed": problem.spec.seed, "check": False}
    return profile(problem.base, problem.calibration(size), signals, **own, **how)


def _source(problem: PlantedProblem, profiles: Mapping[str, Any], signals: Sequence[str]) -> Any:
    """Return what a plan is made from: the targets alone, or one profile with the signals."""
    from tailora.profiles import Profile

    if not signals:
        return list(problem.targets)
    values = {signal: profiles[signal].signals[signal] for signal in signals}
    return Profile(problem.targets, values, profiles[signals[0]].meta)
