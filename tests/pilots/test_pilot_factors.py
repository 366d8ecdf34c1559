"""A pilot's update, truncated and valued, is what whole matrices and whole gradients give."""

from __future__ import annotations

import pytest
import torch

from reference.pilots import dense_update, dense_worths
from tailora.pilots import PATH, truncated, update_of, worths

SCALE = 0.25


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("out", "inner", "inputs"), [(7, 3, 5), (4, 4, 9), (12, 1, 2)])
def test_an_update_is_the_decomposition_of_the_product(out, inner, inputs):
    a, b = drawn(inner, inputs), drawn(out, inner, seed=1)
    update = update_of(a, b, SCALE)
    whole, (_, values, _) = dense_update(a, b, SCALE)
    assert torch.allclose(update.left * update.values @ update.right, whole, atol=1e-12)
    assert torch.allclose(update.values, values[:inner], atol=1e-12)
    for basis in (update.left, update.right.T):
        assert torch.allclose(basis.T @ basis, torch.eye(inner, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 4, 6])
def test_truncation_is_the_nearest_matrix_of_the_rank(rank):
    a, b = drawn(4, 9), drawn(6, 4, seed=1)
    whole, (left, values, right) = dense_update(a, b, SCALE)
    small_a, small_b = truncated(update_of(a, b, SCALE), rank, scale=2.0)
    assert small_a.shape == (rank, 9)
    assert small_b.shape == (6, rank)
    nearest = left[:, :rank] * values[:rank] @ right[:rank]
    assert torch.allclose(2.0 * small_b @ small_a, nearest, atol=1e-12)
    assert float((small_a @ small_a.T - small_b.T @ small_b).abs().max()) < 1e-12, "balanced between the factors"
    if rank >= 4:
        assert torch.allclose(2.0 * small_b @ small_a, whole, atol=1e-12)


@pytest.fixture
def loss():
    """A small non-linear network whose first matrix is adapted."""
    weight, second, inputs, goal = drawn(6, 5), drawn(3, 6, seed=1), drawn(40, 5, seed=2), drawn(40, 3, seed=3)
    return lambda update: (torch.tanh(inputs @ (weight + update).T) @ second.T - goal).square().mean()


def gradient_of_b(loss, a, b, nodes):
    """What LoRA's own backward pass gives, averaged over the way."""
    mean = torch.zeros_like(b)
    for share, weight in nodes:
        moved = (share * b).requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(SCALE * moved @ a), moved)
        mean += weight * gradient
    return mean


def test_worths_need_no_whole_gradient(loss):
    a, b = drawn(3, 5, seed=4), drawn(6, 3, seed=5)
    update = update_of(a, b, SCALE)
    found = worths(update, a, gradient_of_b(loss, a, b, PATH), SCALE)
    whole, _ = dense_update(a, b, SCALE)
    expected = dense_worths(loss, whole, (update.left, update.values, update.right), PATH)
    assert torch.allclose(found, expected, atol=1e-12)
    assert found.abs().max() > 1e-3


def test_worths_add_up_to_what_the_loss_lost(loss):
    a, b = drawn(3, 5, seed=4), drawn(6, 3, seed=5)
    fine = [((k + 0.5) / 400, 1 / 400) for k in range(400)]
    found = worths(update_of(a, b, SCALE), a, gradient_of_b(loss, a, b, fine), SCALE)
    fall = loss(torch.zeros(6, 5, dtype=torch.float64)) - loss(SCALE * b @ a)
    assert float(found.sum()) == pytest.approx(float(fall), rel=1e-4)


def test_a_row_that_is_lost_leaves_the_others_their_worth(loss):
    a, b = drawn(3, 5, seed=4), drawn(6, 3, seed=5)
    a[2] = 0
    found = worths(update_of(a, b, SCALE), a, gradient_of_b(loss, a, b, PATH), SCALE)
    rest = worths(update_of(a[:2], b[:, :2], SCALE), a[:2], gradient_of_b(loss, a[:2], b[:, :2], PATH), SCALE)
    assert torch.allclose(found[:2], rest, atol=1e-10)
    assert abs(float(found[2])) < 1e-10
