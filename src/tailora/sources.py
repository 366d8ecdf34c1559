"""What a plan can be made from: a profile, a model, or targets alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from tailora.errors import UserError, unknown_name
from tailora.targets import Target, find_targets


def targets_of(source: Any) -> list[Target]:
    """Return the targets of a profile, a model or a list of targets.

    Args:
        source: One of the three.

    Returns:
        The targets, in the source's order.

    Raises:
        UserError: It is something else, or an empty list.
    """
    if hasattr(source, "targets") and hasattr(source, "signals"):
        return list(source.targets)
    if isinstance(source, Sequence) and not isinstance(source, str):
        targets = list(source)
        if targets and all(isinstance(target, Target) for target in targets):
            return targets
        raise UserError("an empty list, or a list of something else than targets, cannot be planned; use find_targets")
    if not isinstance(source, str) and hasattr(source, "named_modules"):
        return find_targets(source)
    raise UserError(f"{type(source).__name__} {source!r:.60} is neither a profile, a model nor a list of targets")


def evidence_of(source: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the signals of a profile and where they come from.

    Args:
        source: A profile, a model or targets.

    Returns:
        Signal name to array, and the provenance of a plan made from them; both empty for models and targets.
    """
    if not hasattr(source, "signals"):
        return {}, {}
    return dict(source.signals), {
        "profile": source.hash,
        "model": source.meta.get("model"),
        "data": source.meta.get("data"),
        "examples": source.meta.get("examples"),
    }


def model_params_of(source: Any) -> int | None:
    """Return the number of base parameters where the source tells it.

    Args:
        source: A profile, a model or targets.

    Returns:
        The number, or ``None``.
    """
    if hasattr(source, "meta"):
        return source.meta.get("model_params")
    if hasattr(source, "parameters"):
        from tailora.packed import count_weights

        return count_weights(source)
    return None


def require_signals(recipe: str, needed: Sequence[str], held: Collection[str]) -> None:
    """Refuse a recipe whose signals the source does not hold.

    Args:
        recipe: The recipe's name, for the message.
        needed: The signals it reads.
        held: The signals that are there.

    Raises:
        UserError: One is missing; where no signal is called like that, with the nearest name.
    """
    missing = next((name for name in needed if name not in held), None)
    if missing is None:
        return
    from tailora.recipes.schema import PILOT_SIGNALS
    from tailora.signals import SIGNALS

    if missing in PILOT_SIGNALS:
        raise UserError(
            f"recipe {recipe!r} reads {missing!r}, which no profile of the base model holds but a run's own pilot "
            "measures; train with the recipe (tailora train), or plan from the folder 'pilot' of such a run"
        )
    if missing not in SIGNALS:
        raise unknown_name("signal", missing, {*SIGNALS.names(), *held})
    raise UserError(
        f"recipe {recipe!r} reads the signal {missing!r}, which the source does not hold; profile the model with "
        f"signals={tuple(needed)!r} (tailora profile --signals {','.join(needed)}) and plan from the profile"
    )
