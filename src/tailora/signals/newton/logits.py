"""The loss of a batch as a function of its logits alone: gradient, curvature, and draws with that covariance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tailora.errors import UserError
from tailora.signals.losses import Loss
from tailora.signals.observations import wide

_ALIKE = 1e-3
"""How far a Hessian may lie from that of weighted cross-entropies, relative to it, to be taken for one."""
_PROBES = 4


class LogitsOnly:
    """Outputs of a model that are logits and nothing else.

    Attributes:
        logits: The logits.
    """

    def __init__(self, logits: Tensor, loss: str) -> None:
        """Hold the logits.

        Args:
            logits: The logits.
            loss: Name of the loss, for the sentence that refuses another output.
        """
        self.logits = logits
        self._loss = loss

    def __getattr__(self, name: str) -> Any:
        """Refuse every other output."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._refused(name)

    def __getitem__(self, key: Any) -> Tensor:
        """Return the logits by their name; where a tuple has them depends on what else there is."""
        if key == "logits":
            return self.logits
        raise self._refused(f"[{key!r}]")

    def _refused(self, what: str) -> UserError:
        return UserError(
            f"loss {self._loss!r} reads {what!r} of the model's outputs; 'newton_spectrum' needs a loss of "
            "outputs.logits and the batch alone"
        )


class LogitsLoss:
    """The sum of a batch's losses around given logits, sent through twice.

    Attributes:
        logits: A leaf in at least float32.
        losses: One per example, detached.
    """

    def __init__(self, name: str, function: Loss, logits: Tensor, batch: Mapping[str, Any]) -> None:
        """Evaluate the loss and its gradient.

        Args:
            name: Of the loss.
            function: From outputs and batch to ``[n_examples]``.
            logits: ``[..., classes]``.
            batch: The batch.

        Raises:
            UserError: The loss reads other outputs, or does not depend on the logits.
        """
        self.logits = wide(logits.detach()).clone().requires_grad_()
        losses = function(LogitsOnly(self.logits, name), batch)
        if not losses.requires_grad:
            raise UserError(f"loss {name!r} does not depend on outputs.logits; 'newton_spectrum' needs one that does")
        self.losses = losses.detach()
        (found,) = torch.autograd.grad(losses.sum(), self.logits, create_graph=True, allow_unused=True)
        if found is None:
            raise UserError(f"loss {name!r} does not depend on outputs.logits; 'newton_spectrum' needs one that does")
        self._gradient = found

    @property
    def gradient(self) -> Tensor:
        """The gradient of the sum in the logits."""
        return self._gradient.detach()

    def product(self, vector: Tensor) -> Tensor:
        """Return the Hessian of the sum in the logits times a vector.

        Args:
            vector: Like the logits.

        Returns:
            Like the logits.
        """
        if not self._gradient.requires_grad:
            return torch.zeros_like(self.logits)
        (found,) = torch.autograd.grad(self._gradient, self.logits, vector, retain_graph=True, allow_unused=True)
        return torch.zeros_like(self.logits) if found is None else found


def draw(name: str, function: Loss, here: LogitsLoss, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    """Draw a vector at the logits whose covariance is the Hessian there, position by position.

    Where the loss is a sum of cross-entropies with weights ``w_t``, the Hessian at position t is
    ``w_t (diag p - p p^T)`` and the draw ``sqrt(w_t) (p - onehot(y))`` with y of p: the gradient that the true Fisher
    is made of (Martens 2020, arXiv 1412.1193).  The weights are read from a product with the Hessian at zero logits,
    where it cannot round to nothing, and the product at the real logits must then be the one that follows.  Of every
    other loss the Hessian is taken to be its diagonal, which is exact for squared errors and for independent yes or no
    labels.

    Args:
        name: Of the loss.
        function: The loss.
        here: The loss around the model's logits.
        batch: The batch.
        generator: Of the logits' device.

    Returns:
        Like the logits.
    """
    logits = here.logits.detach()
    weights = _weights(name, function, here, batch, generator)
    if weights is not None:
        p = logits.softmax(dim=-1)
        drawn = torch.multinomial(p.reshape(-1, p.shape[-1]), 1, generator=generator).reshape(*p.shape[:-1], 1)
        return weights.sqrt().unsqueeze(-1) * p.scatter_add(-1, drawn, torch.full_like(p[..., :1], -1.0))
    diagonal = torch.zeros_like(logits)
    for _ in range(_PROBES):
        signs = torch.randint(0, 2, logits.shape, generator=generator, device=logits.device).to(logits.dtype) * 2 - 1
        diagonal += signs * here.product(signs) / _PROBES
    return diagonal.clamp(min=0.0).sqrt() * _normal(logits, generator)


def _weights(
    name: str, function: Loss, here: LogitsLoss, batch: Mapping[str, Any], generator: torch.Generator
) -> Tensor | None:
    """Return the weight of each position's cross-entropy, ``None`` where the loss is not a sum of such."""
    logits = here.logits.detach()
    classes = logits.shape[-1]
    if classes < 2:
        return None
    probe = _normal(logits, generator)
    # The weight does not depend on the logits, and at zero logits every class has the same share.
    level = probe - probe.mean(dim=-1, keepdim=True)
    found = LogitsLoss(name, function, torch.zeros_like(logits), batch).product(probe)
    weights = (probe * found).sum(dim=-1) / (level.square().sum(dim=-1) / classes)
    if not bool(torch.isfinite(weights).all()) or float(weights.min()) < -_ALIKE * float(weights.abs().max()):
        return None
    weights = weights.clamp(min=0.0)
    p = logits.softmax(dim=-1)
    for wanted, have in (
        (weights.unsqueeze(-1) * level / classes, found),
        (weights.unsqueeze(-1) * p * (probe - (p * probe).sum(dim=-1, keepdim=True)), here.product(probe)),
    ):
        # Positions at which the model is certain have a Hessian below what the logits' own rounding leaves of it.
        least = torch.finfo(p.dtype).eps * float(weights.norm())
        if float((wanted - have).norm()) > _ALIKE * float(wanted.norm()) + 10 * least:
            return None
    return weights


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
