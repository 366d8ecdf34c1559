"""The mask of a run: scored once on the calibration examples, stored, and the optimizer of what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailora import processes
from tailora.adapters import own_weights
from tailora.config import RunConfig
from tailora.errors import UserError
from tailora.masks import FisherMask, MaskedOptimizer, fisher_mask
from tailora.masks.storage import MASK_FILE
from tailora.tasks.calibration import Prepared, calibration_batches, device_of

if TYPE_CHECKING:
    from tailora.plans import Plan

FOLDER = "mask"
"""Where a run keeps its mask."""


def mask_of(
    config: RunConfig,
    plan: Plan,
    model: Any,
    prepared: Prepared,
    folder: Path,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> FisherMask | None:
    """Return the mask of a run: the stored one of a run that was cut off, or a new one, which is stored.

    It is scored on the run's own adapter and head, on the calibration examples, which are training examples.

    Args:
        config: The run's configuration.
        plan: Its plan.
        model: The peft model that will train.
        prepared: The run's data.
        folder: The run's folder.
        progress: Called as ``progress("mask", examples done, examples)``.

    Returns:
        The mask, for this model; ``None`` where the recipe has none.
    """
    slot = plan.recipe.mask
    if slot is None or plan.kept_params is None:
        return None
    place = folder / FOLDER
    model.to(device_of(config))
    # A warm-up that is not rewound leaves its mark on the model, so such a mask is made again rather than read.
    if slot.rewind and processes.from_main((place / MASK_FILE).is_file()):
        return FisherMask.load(place).apply(model)
    batches = [
        {name: tensor.to(device_of(config)) for name, tensor in batch.items()}
        for batch in calibration_batches(config, prepared)
    ]
    total = sum(len(batch["labels"]) for batch in batches)
    mask = fisher_mask(
        model,
        batches,
        keep=plan.kept_params,
        **_candidates(plan, model),
        kind=slot.kind,
        reduction=slot.reduction,
        selection=slot.selection,
        zero=slot.zero,
        warmup_steps=slot.warmup_steps,
        warmup_lr=slot.warmup_learning_rate or config.training.learning_rate,
        rewind=slot.rewind,
        seed=config.seed,
        progress=None if progress is None else lambda done: progress("mask", done, total),
    )
    if processes.is_main():
        mask.save(place)
    processes.barrier()
    return mask


def _candidates(plan: Plan, model: Any) -> dict[str, Any]:
    """Name the base weights that a mask chooses from; an adapter's parameters are found without being named."""
    own = own_weights(plan)
    if not own:
        return {}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    chosen = [f"base_model.model.{name}.modules_to_save.default.weight" for name in plan.ranks if name in own]
    return {"parameters": chosen, "heads": [name for name in trained if name not in set(chosen)]}


def masked_optimizer(config: RunConfig, plan: Plan, model: Any, mask: FisherMask) -> MaskedOptimizer:
    """Return AdamW over the kept entries and the task head, with the run's settings.

    Args:
        config: The run's configuration.
        plan: Its plan.
        model: Its peft model.
        mask: Its mask.

    Returns:
        The optimizer.

    Raises:
        UserError: The run asks for another optimizer, or the recipe for a training method beside the mask.
    """
    import torch

    training, method = config.training, plan.recipe.training.method
    if method != "standard":
        raise UserError(
            f"recipe {plan.recipe.name!r} has a mask and the training method {method!r}; a mask trains with 'standard'"
        )
    if training.optim not in _CLASSES:
        raise UserError(
            f"training.optim={training.optim!r} cannot be masked; use one of: {', '.join(sorted(_CLASSES))}"
        )
    name, options = _CLASSES[training.optim]
    if name == "AdamW":
        options = {
            **options,
            "betas": (training.adam_beta1, training.adam_beta2),
            "eps": training.adam_epsilon,
        }
    # As the Trainer does for every other run: biases do not decay.
    biases = any(one.endswith("bias") for one, parameter in model.named_parameters() if parameter.requires_grad)
    return mask.optimizer(
        getattr(torch.optim, name),
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        groups={"*bias": {"weight_decay": 0.0}} if biases else None,
        **options,
    )


_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw_torch": ("AdamW", {}),
    "adamw_torch_fused": ("AdamW", {"fused": True}),
    "sgd": ("SGD", {}),
}
"""Optimizers of the Trainer whose step treats every entry on its own."""
