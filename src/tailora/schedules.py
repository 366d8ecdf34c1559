"""What the learning rate's schedule and the order of the examples need besides transformers' own."""

from __future__ import annotations

import functools
from typing import Any

from tailora.config import TrainingConfig
from tailora.errors import ConfigError


def check_schedule(settings: TrainingConfig) -> None:
    """Refuse arguments that the schedule does not know, before anything is computed.

    Args:
        settings: The training settings.

    Raises:
        ConfigError: The schedule cannot be built.
    """
    kind, given = settings.lr_scheduler_type, settings.lr_scheduler_kwargs
    if kind in ("constant", "constant_with_warmup") and given:
        raise ConfigError(
            f"training.lr_scheduler_kwargs={given} cannot be used: lr_scheduler_type={kind} takes none; leave them out"
        )
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        schedule = get_scheduler(kind, optimizer, 2, 10, given)
        # Some arguments are first looked at when the rate changes.
        for _ in range(9):
            optimizer.step()
            schedule.step()
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"training.lr_scheduler_kwargs={given} cannot be used with lr_scheduler_type={kind}: {reason}; correct them"
        ) from None


@functools.cache
def length_sampler() -> Any:
    """Return transformers' sampler of like lengths whose order depends on seed and epoch alone.

    Its own draws from the global state, so a resumed run would see another order in every epoch but the first.

    Returns:
        The class; built with ``seed`` and what transformers' own is built with.
    """
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class SeededByEpoch(LengthGroupedSampler):
        def __init__(self, *args: Any, seed: int, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.seed, self.epoch = seed, 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Any:
            self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
            return super().__iter__()

    return SeededByEpoch
