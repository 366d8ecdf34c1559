"""Slow twins of the pilot's arithmetic: whole matrices, whole gradients, float64."""

from __future__ import annotations

import torch


def dense_update(a, b, scale):
    """The update as a matrix, and its singular value decomposition."""
    whole = scale * b.double() @ a.double()
    return whole, torch.linalg.svd(whole, full_matrices=False)


def dense_worths(loss_at, whole, directions, nodes):
    """``-sigma_k u_k^T (integral of G) v_k`` with G the gradient in the whole weight.

    ``loss_at`` gives the loss at a share of the update, with a function of the weight to differentiate; ``nodes`` are
    shares and weights of the quadrature.
    """
    mean = torch.zeros_like(whole)
    for share, weight in nodes:
        moved = (share * whole).requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss_at(moved), moved)
        mean += weight * gradient
    left, values, right = directions
    return torch.stack([-values[k] * left[:, k] @ mean @ right[k] for k in range(len(values))])
