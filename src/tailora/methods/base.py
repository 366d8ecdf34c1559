"""What a training method is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailora.errors import UserError, unknown_name

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """What every optimizer is told.

    Attributes:
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay.
    """

    learning_rate: float
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class TrainingMethod:
    """How the adapter trains.

    Attributes:
        build: From peft model, settings and options to an optimizer; ``None`` leaves it to the Trainer.
        defaults: The options and their default values.
    """

    build: Callable[[Any, OptimizerSettings, Mapping[str, Any]], torch.optim.Optimizer | None]
    defaults: Mapping[str, Any]

    def optimizer(
        self, model: Any, settings: OptimizerSettings, options: Mapping[str, Any] | None = None
    ) -> torch.optim.Optimizer | None:
        """Return the optimizer for ``model``.

        Args:
            model: A peft model.
            settings: Learning rate and weight decay.
            options: Options by name; missing ones take their defaults.

        Returns:
            The optimizer, or ``None`` where the Trainer's own AdamW is meant.

        Raises:
            UserError: An option is unknown or its value cannot be used.
        """
        given = dict(options or {})
        for name in given:
            if name not in self.defaults:
                raise unknown_name("training option", name, self.defaults)
        return self.build(model, settings, {**self.defaults, **given})


def positive(options: Mapping[str, Any], name: str) -> float:
    """Return an option that must be a positive number.

    Args:
        options: All options.
        name: Which one.

    Returns:
        Its value.

    Raises:
        UserError: It is no positive number.
    """
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UserError(f"training option {name}={value!r} must be a positive number")
    return float(value)
