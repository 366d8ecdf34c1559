"""The profile of a model's weights alone: no data, no task, no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tailora.architecture import load_architecture
from tailora.config import RunConfig
from tailora.errors import UserError
from tailora.tasks.calibration import device_of
from tailora.tasks.loading import check_folder, load_weights

if TYPE_CHECKING:
    from tailora.profiles import Profile


def measure_weights(config: RunConfig, signals: Sequence[str], **how: Any) -> Profile:
    """Measure signals that need no data, of a model as its own configuration names it.

    Args:
        config: Model, its quantisation and the placement; the task is not looked at.
        signals: Signals of the weights.
        **how: Further keyword arguments of ``tailora.profile``.

    Returns:
        The profile.

    Raises:
        UserError: The model cannot be used, or a signal needs data.
    """
    from tailora.profiles import profile

    check_needs(signals)
    check_folder(config.model)
    network = load_architecture(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    loaded = load_weights(config, type(network))
    return profile(loaded.model.to(device_of(config)), (), signals, placement=config.placement, **how)


def check_needs(signals: Sequence[str]) -> None:
    """Refuse signals that are not read from the weights alone.

    Args:
        signals: Names of registered signals.

    Raises:
        UserError: One needs data.
    """
    from tailora.signals import SIGNALS

    alone = [entry.name for entry in SIGNALS if not (entry.value.needs or entry.value.states or entry.value.solve)]
    needy = next((name for name in signals if name not in alone), None)
    if needy is not None:
        raise UserError(
            f"signal {needy!r} is measured on data; give --data, or ask with --signals for those of the weights alone: "
            f"{', '.join(alone)}"
        )
