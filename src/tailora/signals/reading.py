"""The statistics that signals are read from, empty: before a pass, or before sums that were kept are put back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from tailora.signals import SIGNALS
from tailora.signals.base import Context, Statistics
from tailora.targets import Target


def statistics_for(
    model: nn.Module | None, targets: Sequence[Target], signals: Iterable[str], seed: int, options: Mapping[str, Any]
) -> tuple[Context, Statistics]:
    """Return what signals look at and are read from.

    Args:
        model: The model; ``None`` where sums are put back and no signal reads weights.
        targets: What is or was measured.
        signals: Registered names.
        seed: For what is drawn at random.
        options: Options of the profile; no sketches are made where a signal needs gradients in whole.

    Returns:
        The context, and one empty statistic of each kind.
    """
    chosen = [SIGNALS[name] for name in signals]
    whole = {"sketch": 0} if any(signal.whole for signal in chosen) else {}
    context = Context(model, targets, seed, {**options, **whole})  # type: ignore[arg-type]
    return context, {kind: kind(context) for signal in chosen for kind in signal.needs}
