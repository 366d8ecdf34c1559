"""What each direction of a learned update has done for the loss: integrated gradients along the way to it."""

from __future__ import annotations

import torch
from torch import Tensor

from tailora.pilots.factors import Update

PATH = ((0.0, 0.5), (1.0, 0.5))
"""The trapezoidal rule: shares of the update at which the gradient is taken, and their weights."""


def worths(update: Update, a: Tensor, gradient: Tensor, scale: float) -> Tensor:
    """Return what every singular direction of an update takes off the loss.

    The gradient of the loss in the weight, averaged over the straight way from no update to the whole of it, says how
    much of the loss's fall each direction accounts for: ``-sigma_k u_k^T G v_k``; over all targets' directions these
    add up to the fall itself (the completeness of integrated gradients, Sundararajan et al. 2017, arXiv 1703.01365).
    Taken on examples that the update was not learned from, a direction learned from noise is worth nothing in
    expectation.

    ``G`` is never made: LoRA's own gradient is ``dL/dB = scale * G A^T``, and the right directions lie in the row
    space of ``A``.

    Args:
        update: The whole update, ``scale * B A``.
        a: ``A [k, in]``, of full row rank as far as the update needs it.
        gradient: ``dL/dB [out, k]``, averaged over ``PATH``: with the whole ``A``, and ``B`` at each share of itself.
        scale: LoRA's ``alpha / r``.

    Returns:
        float64 ``[k]``, in the loss's unit; negative where a direction does harm.
    """
    right, upper = torch.linalg.qr(a.detach().double().T)
    # G Q from G A^T = G Q R; a pseudo-inverse, since an A that lost a row says nothing along it.
    projected = gradient.detach().double() / scale @ torch.linalg.pinv(upper)
    inner = right.T @ update.right.T
    return -update.values * torch.einsum("ok,ok->k", update.left, projected @ inner)
