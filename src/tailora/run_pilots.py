"""The pilot of a run: a larger adapter trained for a share of the steps, what it says, and what goes on from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tailora.artifacts import content_hash, read_json, write_json
from tailora.config import RunConfig
from tailora.config_files import world_size
from tailora.errors import PlacementError, TrainingError, UserError
from tailora.pilots import PATH, SPECTRUM, WORTH, truncated, update_of, worths
from tailora.profiles import Profile
from tailora.tasks.calibration import Prepared, calibration_batches, device_of
from tailora.training import Job, last_checkpoint, train

if TYPE_CHECKING:
    from torch import Tensor

    from tailora.plans import Plan
    from tailora.recipes import Recipe
    from tailora.tasks import LoadedModel

FOLDER = "pilot"
"""Where a run keeps what its pilot found."""

_KINDS = ("linear", "conv1d")


@dataclass(frozen=True)
class PilotRun:
    """A pilot that is over.

    Attributes:
        profile: The run's profile with the pilot's two signals.
        source: The pilot's last checkpoint; ``None`` where the run starts anew.
        facts: What ``pilot/pilot.json`` tells.
    """

    profile: Profile
    source: Path | None
    facts: Mapping[str, Any]


def check_pilot(config: RunConfig, recipe: Recipe) -> None:
    """Refuse what a pilot cannot be trained with, before a model is loaded.

    Args:
        config: The run's configuration.
        recipe: Its recipe.

    Raises:
        UserError: The run streams its data, takes a single step, or uses several processes.
    """
    if recipe.pilot is None:
        return
    if world_size() > 1:
        raise UserError(
            f"recipe {recipe.name!r} trains a pilot, which takes one process and found {world_size()}; start the "
            "run without torchrun or accelerate"
        )
    if config.task.streaming:
        raise UserError(f"recipe {recipe.name!r} trains a pilot, which cannot be streamed to; set task.streaming=false")
    if config.training.max_steps == 1:
        raise UserError(f"recipe {recipe.name!r} trains a pilot, which needs training.max_steps of at least 2, not 1")


def pilot_of(
    config: RunConfig, recipe: Recipe, prepared: Prepared, profile: Profile, fresh: LoadedModel, job: Job
) -> PilotRun:
    """Train the pilot of a run, or what is left of it, and measure what it learned.

    The pilot is LoRA of one rank on every candidate of the recipe's placement, with a task head where the run has one.
    It takes the run's own first batches, schedule and learning rate, with a scale in proportion.  What each direction
    of its update is worth is measured on the calibration examples.

    Args:
        config: The run's configuration.
        recipe: Its recipe, which has a pilot.
        prepared: The run's data.
        profile: The run's profile.
        fresh: A copy of the base model, which the pilot changes.
        job: The run's training.

    Returns:
        The pilot.

    Raises:
        PlacementError: A candidate is an embedding or a stack of experts.
        TrainingError: The pilot diverged.
    """
    slot = recipe.pilot
    assert slot is not None
    place = job.folder / FOLDER
    if (place / "pilot.json").is_file():
        facts = read_json(place / "pilot.json", "pilot's record")
        return PilotRun(Profile.load(place), last_checkpoint(place / "checkpoints") if slot.keep else None, facts)
    rank, plan = _plan(config, recipe, profile)
    scale = plan.recipe.adapter.scaling.scale
    model = plan.apply(
        fresh.model,
        task_type=prepared.task.task_type,
        modules_to_save=list(fresh.new_modules) or None,
        seed=config.seed,
    )
    own = replace(
        job,
        folder=place,
        settings=config.training.model_copy(update={"early_stopping_patience": None}),
        share=slot.share,
        evaluate=None,
        validate=None,
    )
    own.checkpoints.mkdir(parents=True, exist_ok=True)
    train(model, own)
    gradients = _path_gradients(config, prepared, model)
    spectra, worth = {}, {}
    for entry in plan.targets:
        name = entry.target.name
        a, b = _factors(model, name)
        update = update_of(a.cpu(), b.cpu(), scale)
        spectra[name] = update.values.numpy()
        worth[name] = worths(update, a.cpu(), gradients[name].cpu(), scale).numpy()
    found = _joined(profile, {SPECTRUM: spectra, WORTH: worth})
    found.save(place)
    source = last_checkpoint(own.checkpoints)
    if source is None:
        raise TrainingError(f"the pilot left no checkpoint in {str(own.checkpoints)!r}; start the run again")
    facts = {
        "rank": rank,
        "scale": scale,
        "steps": int(source.name.rpartition("-")[2]),
        "adapter_params": plan.adapter_params,
        "kept": slot.keep,
        # Both passes over the calibration examples, besides the steps.
        "calibration_passes": len(PATH),
    }
    if not slot.keep:
        shutil.rmtree(own.checkpoints, ignore_errors=True)
        source = None
    # Last: from now on the pilot is over.
    write_json(place / "pilot.json", facts)
    return PilotRun(found, source, facts)


def start_from(pilot: PilotRun, plan: Plan, model: Any) -> None:
    """Put a pilot's update, truncated to a plan, and its task head into a model.

    Args:
        pilot: A pilot that is kept.
        plan: The run's plan.
        model: Its peft model; changed.
    """
    import torch
    from safetensors.torch import load_file

    assert pilot.source is not None
    held = load_file(pilot.source / "adapter_model.safetensors")
    scale = plan.recipe.adapter.scaling.scale
    before = float(pilot.facts["scale"])
    with torch.no_grad():
        for name, rank in plan.ranks.items():
            if not rank:
                continue
            prefix = f"base_model.model.{name}"
            update = update_of(held[f"{prefix}.lora_A.weight"], held[f"{prefix}.lora_B.weight"], before)
            for mine, value in zip(_factors(model, name), truncated(update, rank, scale), strict=True):
                mine.copy_(value)
    heads = {name: tensor for name, tensor in held.items() if ".lora_" not in name}
    if heads:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, heads)


def _plan(config: RunConfig, recipe: Recipe, profile: Profile) -> tuple[int, Plan]:
    """Return the pilot's rank and its plan."""
    from tailora.placement import select
    from tailora.planning import resolve_rank
    from tailora.plans import plan

    slot = recipe.pilot
    assert slot is not None
    placement = f"({config.placement})&({recipe.placement})"
    active = _both(profile, config.placement, recipe.placement, select)
    for target in active:
        if target.kind not in _KINDS:
            raise PlacementError(
                f"recipe {recipe.name!r} trains a pilot, which adapts linear layers; {target.name!r} of the placement "
                f"{placement!r} is of the kind {target.kind!r}, so exclude it"
            )
    budget = plan(profile, "lora", config.budget, config.placement).budget_params
    uniform = budget / sum(target.cost(1) for target in active)
    rank = resolve_rank(slot.rank, uniform)
    scale = recipe.adapter.scaling.scale * (slot.scale or min(1.0, uniform / rank))
    adapter = {"dropout": recipe.adapter.dropout, "scaling": {"kind": "constant", "scale": scale}}
    explicit = {"ranks": {target.name: min(rank, target.max_rank) for target in active}}
    made = plan(
        active,
        {"name": "pilot-training", "allocation": {"name": "explicit", "options": explicit}, "adapter": adapter},
    )
    return rank, made


def _both(profile: Profile, first: str, second: str, select: Any) -> list[Any]:
    """Return the targets that two placements select."""
    chosen = set(select(profile.targets, second))
    return [target for target in select(profile.targets, first) if target in chosen]


def _factors(model: Any, name: str) -> tuple[Tensor, Tensor]:
    """Return a target's ``A [r, in]`` and ``B [out, r]`` of a peft model."""
    layer = model.base_model.model.get_submodule(name)
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def _path_gradients(config: RunConfig, prepared: Prepared, model: Any) -> dict[str, Tensor]:
    """Return the gradient in every ``B``, averaged over the way to the update and over the calibration examples."""
    import torch

    from tailora.evaluation import evaluating
    from tailora.masks.warmup import batch_loss

    device = device_of(config)
    model.to(device)
    batches = [
        {name: tensor.to(device) for name, tensor in batch.items()} for batch in calibration_batches(config, prepared)
    ]
    total = sum(len(batch["labels"]) for batch in batches)
    factors = {
        name.removeprefix("base_model.model.").removesuffix(".lora_B.default.weight"): parameter
        for name, parameter in model.named_parameters()
        if name.endswith(".lora_B.default.weight")
    }
    whole = {name: b.detach().clone() for name, b in factors.items()}
    found = {name: torch.zeros_like(b, dtype=torch.float64) for name, b in whole.items()}
    with evaluating(model), torch.enable_grad():
        for share, weight in PATH:
            for name, b in factors.items():
                b.data.copy_(share * whole[name])
            for batch in batches:
                loss = batch_loss(model, batch, "auto") * (weight * len(batch["labels"]) / total)
                gradients = torch.autograd.grad(loss, list(factors.values()))
                for name, gradient in zip(factors, gradients, strict=True):
                    found[name] += gradient.double()
        for name, b in factors.items():
            b.data.copy_(whole[name])
    return found


def _joined(profile: Profile, signals: Mapping[str, Mapping[str, np.ndarray]]) -> Profile:
    """Return the profile with further signals; targets that the pilot did not train have zeros."""
    added = {name: _rows([target.name for target in profile.targets], rows) for name, rows in signals.items()}
    meta = {**profile.meta, "pilot": content_hash({name: rows.tolist() for name, rows in added.items()})}
    return Profile(profile.targets, {**profile.signals, **added}, meta)


def _rows(names: Iterable[str], values: Mapping[str, np.ndarray]) -> np.ndarray:
    order = list(names)
    rows = np.zeros((len(order), max(len(row) for row in values.values())))
    for place, name in enumerate(order):
        if name in values:
            rows[place, : len(values[name])] = values[name]
    return rows
