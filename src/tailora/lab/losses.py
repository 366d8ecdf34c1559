"""What students are trained on and scored by: distance to the teacher's distribution, or to tokens drawn from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def lab_loss(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """Return each sequence's loss, as ``tailora.profile`` takes it.

    Args:
        outputs: Model outputs with ``logits [n, length, vocabulary]``.
        batch: With ``loss_target``: the teacher's log-probabilities ``[n, length, vocabulary]``, or drawn tokens
            ``[n, length]``.

    Returns:
        Mean over the sequence's positions, ``[n]``, in nats: ``KL(teacher || student)``, or the cross-entropy.
    """
    return student_losses(outputs.logits[None], batch["loss_target"])[0]


def student_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Return each student's loss on each sequence.

    Args:
        logits: ``[students, n, length, vocabulary]``.
        target: As in ``lab_loss``, shared by all students.

    Returns:
        ``[students, n]``, nats per position.
    """
    own = logits.log_softmax(dim=-1)
    if target.dtype.is_floating_point:
        target = target.to(own.dtype)
        known = target.exp()
        # sum p (log p - log q), its first part shared by all students.
        entropy = (known * target).sum(dim=-1)
        return (entropy - (known * own).sum(dim=-1)).mean(dim=-1)
    picked = own.gather(-1, target.expand(own.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return -picked.mean(dim=-1)
