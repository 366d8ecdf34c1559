"""Whether an example's gradient is the same alone and in its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tailora.errors import UserError
from tailora.signals.observations import Observation
from tailora.signals.quiet import Mode, without_autocast
from tailora.targets import Target


def draws(model: nn.Module, mode: Mode) -> bool:
    """Tell whether two passes differ by chance, so that examples alone cannot be compared with the batch.

    Args:
        model: The model.
        mode: Its mode during the pass.

    Returns:
        Whether it has a dropout that is at work.
    """
    return mode == "train" and any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())


def refuse_mixing(model: nn.Module) -> None:
    """Refuse to measure single examples where training mode mixes them.

    Args:
        model: The model.

    Raises:
        UserError: It has batch normalisation.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(f"{name!r} mixes the examples of a batch in training mode; use mode='eval'")


def squared_norm(seen: Observation | None, row: int) -> float:
    """Return the squared norm of one example's gradient.

    Args:
        seen: What a target saw; ``None`` where the loss does not reach it.
        row: The example.

    Returns:
        Its square; 0 for ``None``.
    """
    if seen is None or not seen.has_gradients:
        return 0.0
    one = torch.zeros(len(seen), dtype=torch.bool)
    one[row] = True
    with without_autocast(seen.device):
        return float(seen.rows(one).squared_norms()[0])


def first_difference(
    model: nn.Module, targets: Sequence[Target], together: Sequence[float], alone: Sequence[float]
) -> str | None:
    """Return the first target whose gradient depends on who else is in the batch.

    Args:
        model: The model, whose dtype says how far apart rounding may take two passes.
        targets: The targets.
        together: Squared norms of one example's gradients in its batch.
        alone: The same from the example by itself.

    Returns:
        A target's name, or ``None`` where all agree.
    """
    found = list(model.parameters())
    coarse = any(p.dtype in (torch.float16, torch.bfloat16) for p in found)
    coarse |= any(torch.is_autocast_enabled(kind) for kind in {p.device.type for p in found} - {"meta"})
    scale = max(max(alone), 1e-300)
    for target, one, other in zip(targets, together, alone, strict=True):
        if abs(one - other) > (0.1 if coarse else 2e-3) * max(other, 1e-6 * scale):
            return target.name
    return None
