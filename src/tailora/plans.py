"""Plans: rank and alpha per target, with cost and provenance; the hand-over to peft."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailora._version import __version__
from tailora.artifacts import content_hash, read_json, write_json
from tailora.budget import Budget
from tailora.errors import PlanMismatchError, TailoraError, UserError
from tailora.planning import alpha_for, chosen_recipe, cost_of, deal
from tailora.recipes import Recipe, load_recipe
from tailora.sources import evidence_of, model_params_of, require_signals, targets_of
from tailora.targets import Target

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel
    from torch import nn

    from tailora.profiles import Profile

FORMAT = "tailora-plan/1"


@dataclass(frozen=True, slots=True)
class PlannedTarget:
    """One candidate and what it gets.

    Attributes:
        target: The candidate.
        rank: Its rank; 0 means not adapted.
        alpha: LoRA's alpha; 0 at rank 0.
        cost: Trainable parameters.
    """

    target: Target
    rank: int
    alpha: float
    cost: int


@dataclass(frozen=True)
class Plan:
    """Ranks and alphas under a budget.

    Attributes:
        recipe: The recipe that decided.
        budget: The budget as written.
        budget_params: Parameters the plan may spend.
        targets: Every candidate in the model's order, rank 0 included.
        model_params: Parameters of the base model, where known.
        provenance: What else a reader needs: placement, seed, profile hash, model fingerprint, versions.
        kept_params: How many of the adapter's parameters a mask lets train; ``None`` without a mask.
    """

    recipe: Recipe
    budget: str
    budget_params: int
    targets: tuple[PlannedTarget, ...]
    model_params: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    kept_params: int | None = None

    @functools.cached_property
    def ranks(self) -> dict[str, int]:
        """Target name to rank, in the model's order; 0 where a candidate is not adapted."""
        return {entry.target.name: entry.rank for entry in self.targets}

    @functools.cached_property
    def alphas(self) -> dict[str, float]:
        """Target name to alpha, adapted targets only."""
        return {entry.target.name: entry.alpha for entry in self.targets if entry.rank}

    @property
    def total_params(self) -> int:
        """Adapter parameters that will train (task heads not counted): all of them, or those that a mask keeps."""
        return self.adapter_params if self.kept_params is None else self.kept_params

    @property
    def adapter_params(self) -> int:
        """Parameters of the whole adapter, whether they train or not."""
        return sum(entry.cost for entry in self.targets)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the plan's content, the versions that made it left out."""
        return content_hash({key: value for key, value in self._content().items() if key != "versions"})

    def lora_config(self, *, task_type: str | None = None, **overrides: Any) -> LoraConfig:
        """Return the plan as a ``peft.LoraConfig``.

        Every adapted target gets one anchored, escaped, full-name key in ``rank_pattern`` and ``alpha_pattern``, so no
        two keys can match one module and the meaning survives peft's sorting of keys on save.

        Args:
            task_type: peft's task type, such as ``"SEQ_CLS"`` or ``"CAUSAL_LM"``.
            **overrides: Further arguments of ``LoraConfig``, such as ``modules_to_save``.

        Returns:
            A new configuration.
        """
        from tailora.adapter_configs import lora_config

        return lora_config(self, task_type=task_type, **overrides)

    def peft_config(self, *, task_type: str | None = None, **overrides: Any) -> PeftConfig:
        """Return the plan as the peft configuration of its kind of adapter: LoRA, LoHa, IA3 or bottleneck.

        Args:
            task_type: peft's task type.
            **overrides: Further arguments of the configuration.

        Returns:
            A new configuration; a ``LoraConfig`` as ``lora_config`` makes it where the adapter is LoRA or DoRA.

        Raises:
            UserError: The plan adapts nothing, or the recipe asks for a dropout that the kind does not have.
        """
        from tailora.adapter_configs import peft_config

        return peft_config(self, task_type=task_type, **overrides)

    def apply(
        self,
        model: nn.Module,
        *,
        task_type: str | None = None,
        modules_to_save: Sequence[str] | None = None,
        seed: int = 0,
        profile: Profile | None = None,
    ) -> PeftModel:
        """Wrap a model with this plan's adapter.

        Args:
            model: The base model that the plan was made for.
            task_type: peft's task type.
            modules_to_save: Modules trained in full beside the adapter.
            seed: Seed of the adapter's initial weights; the global random state is left alone.
            profile: A profile of the model with sums (``keep_sums=True``), for recipes whose initialisation reads one.

        Returns:
            The peft model, whose adapter has exactly ``adapter_params`` parameters, which are ``total_params`` unless
            the recipe has a mask.

        Raises:
            PlanMismatchError: The plan was made for another model, or the profile measured on one of other shapes.
            TailoraError: peft would train another number of parameters than planned.
            UserError: The recipe's initialisation reads a profile, and none was given or it lacks what is read.
        """
        from tailora.adapters import apply_plan

        return apply_plan(self, model, task_type=task_type, modules_to_save=modules_to_save, seed=seed, profile=profile)

    def check(self, model: nn.Module | Sequence[Target]) -> None:
        """Refuse a model that this plan does not fit.

        Args:
            model: A base model, or its targets.

        Raises:
            PlanMismatchError: A planned target is missing there or has another shape.
        """
        theirs = {target.name: target for target in targets_of(model)}
        for entry in self.targets:
            mine = entry.target
            other = theirs.get(mine.name)
            if other is None:
                raise PlanMismatchError(
                    f"the plan has the target {mine.name!r}, which this model lacks: it was made for another model; "
                    "plan again for this one"
                )
            if (other.shape, other.experts, other.kind) != (mine.shape, mine.experts, mine.kind):
                raise PlanMismatchError(
                    f"target {mine.name!r} is {mine.kind} {list(mine.shape)} x {mine.experts} in the plan and "
                    f"{other.kind} {list(other.shape)} x {other.experts} in this model: the plan was made for another "
                    "model; plan again for this one"
                )

    def diff(self, other: Plan) -> list[tuple[str, int, int]]:
        """Return the targets whose ranks differ.

        Args:
            other: The plan to compare with.

        Returns:
            ``(target name, rank here, rank there)`` in this plan's order, then targets that only ``other`` has; a
            target that one plan lacks counts as rank 0 there.
        """
        names = [*self.ranks, *(name for name in other.ranks if name not in self.ranks)]
        pairs = ((name, self.ranks.get(name, 0), other.ranks.get(name, 0)) for name in names)
        return [(name, mine, theirs) for name, mine, theirs in pairs if mine != theirs]

    def _content(self) -> dict[str, Any]:
        """Return everything but the hash."""
        return {
            "format": FORMAT,
            "recipe": self.recipe.to_dict(),
            "budget": self.budget,
            "budget_params": self.budget_params,
            "total_params": self.total_params,
            **({} if self.kept_params is None else {"kept_params": self.kept_params}),
            "model_params": self.model_params,
            "provenance": {key: value for key, value in self.provenance.items() if key != "versions"},
            "versions": dict(self.provenance.get("versions", {})),
            "targets": [
                {**entry.target.to_dict(), "rank": entry.rank, "alpha": entry.alpha, "cost": entry.cost}
                for entry in self.targets
            ],
        }

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict with the plan's hash in it."""
        return {**self._content(), "hash": self.hash}

    def to_json(self) -> str:
        """Return the plan as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON, atomically.

        Args:
            path: The file.

        Returns:
            The path written.
        """
        return write_json(path, self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "plan") -> Plan:
        """Rebuild a plan and verify its hash.

        Args:
            data: ``to_dict``'s result.
            where: What to call it in an error.

        Returns:
            The plan.

        Raises:
            UserError: It is no plan, or was changed after it was made.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise UserError(
                f"{where} is not a plan of format {FORMAT!r} (found {found!r}); make one with 'tailora plan'"
            )
        try:
            plan = cls(
                recipe=load_recipe(data["recipe"]),
                budget=data["budget"],
                budget_params=int(data["budget_params"]),
                targets=tuple(
                    PlannedTarget(Target.from_dict(entry), int(entry["rank"]), entry["alpha"], int(entry["cost"]))
                    for entry in data["targets"]
                ),
                model_params=data.get("model_params"),
                provenance={**data.get("provenance", {}), "versions": data.get("versions", {})},
                kept_params=None if data.get("kept_params") is None else int(data["kept_params"]),
            )
            found = plan.hash
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{where} is damaged ({error!r} while reading it); make it again") from None
        except ValueError as error:
            if isinstance(error, TailoraError):
                raise
            raise UserError(f"{where} is damaged ({error}); make it again") from None
        if found != data.get("hash"):
            raise UserError(
                f"{where} was changed after it was made (hash {str(data.get('hash'))[:12]!r}, content "
                f"{found[:12]!r}); put the changed ranks into a file and plan with the recipe 'explicit'"
            )
        return plan

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a saved plan.

        Args:
            path: The JSON file.

        Returns:
            The plan.

        Raises:
            UserError: The file is missing, no plan, or changed.
        """
        return cls.from_dict(read_json(path, "plan file"), f"plan file {str(path)!r}")


def plan(
    source: Profile | nn.Module | Sequence[Target],
    recipe: str | Path | Mapping[str, Any] | Recipe = "lora",
    budget: str | int | Budget | None = None,
    placement: str = "all-linear",
    *,
    seed: int = 0,
    **allocation_overrides: Any,
) -> Plan:
    """Decide rank and alpha per target under a budget.

    The candidates are the targets that ``placement`` selects: ``r=8`` counts them, and the recipe's own placement can
    only narrow them.  So every recipe gets the same number of parameters for the same words, and ``attention-only`` at
    ``r=8`` spends the whole budget of all linear targets on attention.

    Args:
        source: A profile; or, for recipes that read no signal, a model or its targets.
        recipe: A recipe's name, file, mapping or object.
        budget: ``r=8``, ``2.4M``, ``0.5%``, ``12MB`` or a number of parameters; ``r=8`` where not given, and for
            ``explicit`` what its ranks cost.
        placement: The rule that makes the candidates.
        seed: For allocators that draw at random.
        **allocation_overrides: ``r_min``, ``r_max``, ``multiple``, ``faithful``, or an option of the allocator
            (``signal=...``; ``ranks=...`` for ``explicit``).

    Returns:
        The plan.

    Raises:
        UserError: The recipe needs a signal that the source does not hold, or one of the arguments is wrong.
    """
    chosen = chosen_recipe(recipe, allocation_overrides)
    targets = targets_of(source)
    signals, provenance = evidence_of(source)
    require_signals(chosen.name, chosen.signals, signals)
    model_params = model_params_of(source)
    parsed = Budget.parse("r=8") if budget is None else Budget.parse(budget)
    dealt = deal(
        targets,
        chosen,
        None if budget is None and chosen.allocation.name == "explicit" else parsed,
        placement=placement,
        signals=signals,
        model_params=model_params,
        seed=seed,
    )
    planned = tuple(
        PlannedTarget(
            target=target,
            rank=rank,
            alpha=alpha_for(rank, chosen.adapter.scaling) if rank and chosen.adapter.kind in ("lora", "loha") else 0,
            cost=cost_of(target, rank, chosen),
        )
        for target, rank in zip(dealt.candidates, dealt.ranks, strict=True)
    )
    return Plan(
        recipe=chosen,
        budget=parsed.text if dealt.budgeted else "as written",
        budget_params=dealt.budget_params,
        targets=planned,
        model_params=model_params,
        kept_params=dealt.kept,
        provenance={
            **provenance,
            "placement": placement,
            "seed": seed,
            "asked_params": dealt.asked_params,
            "r_max": dealt.r_max,
            "versions": {"tailora": __version__},
        },
    )
