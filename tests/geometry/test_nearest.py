"""Exact nearest neighbours: against direct differences, where float32 matrices of distances go wrong."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geometry import manifolds
from reference import geometry_slow as slow

search = importlib.import_module("tailora.geometry.nearest")


def direct(points, k=2):
    """Distances by differences in float64, a row at a time."""
    cloud = torch.from_numpy(np.asarray(points)).double()
    found = []
    for row in range(len(cloud)):
        distances = torch.linalg.vector_norm(cloud - cloud[row], dim=1)
        distances[row] = torch.inf
        found.append(distances.topk(k, largest=False).values)
    return torch.stack(found).numpy()


def count_stages(monkeypatch):
    """Record how many rows each stage of the search was given."""
    seen = []
    bound, differences = search._by_bound, search._by_differences

    def by_bound(points, rows, k, candidates, dtype, *out):
        seen.append((dtype, len(rows)))
        return bound(points, rows, k, candidates, dtype, *out)

    def by_differences(points, rows, *rest):
        seen.append(("differences", len(rows)))
        return differences(points, rows, *rest)

    monkeypatch.setattr(search, "_by_bound", by_bound)
    monkeypatch.setattr(search, "_by_differences", by_differences)
    return seen


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "width", "k"), [(5, 1, 2), (40, 3, 2), (90, 7, 5), (400, 30, 2)])
def test_equal_to_the_twin(dtype, n, width, k):
    points = np.random.default_rng(n).normal(size=(n, width)).astype(dtype)
    found = search.nearest(torch.from_numpy(points), k)
    distances, indices = slow.neighbours(points, k)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-13)
    np.testing.assert_array_equal(found.indices, indices)
    assert found.distances.dtype == np.float64


@pytest.mark.parametrize(("offset", "eps"), [(30, 0.0), (300, 0.0), (30, 0.1), (30, 0.01), (30, 0.001), (3000, 0.01)])
def test_cancellation_does_no_harm(offset, eps):
    points = manifolds.near_duplicates(800, 384, offset, eps)
    true = direct(points)
    found = search.nearest(torch.from_numpy(points)).distances
    np.testing.assert_array_equal(found == 0, true == 0)
    np.testing.assert_allclose(found, true, rtol=1e-12)
    if offset == 30 and eps == 0.001:
        # The test must bite: what everybody computes is wrong here.
        cloud = torch.from_numpy(points)
        squares = (cloud * cloud).sum(1)
        gram = (squares[:, None] + squares - 2 * cloud @ cloud.T).clamp_(min=0).sqrt().fill_diagonal_(torch.inf)
        wrong = np.abs(gram.min(dim=1).values.numpy() / true[:, 0] - 1) > 0.01
        assert 0.35 < wrong.mean() < 0.45


def test_clusters_of_many_near_duplicates_need_every_stage(monkeypatch):
    # Fifty points within 1e-6 of each other, far from the centre: float32 sees one point, and more than the candidates
    # are equally good, so only the later stages can tell.
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(6, 64)) * 100
    points = centres[np.arange(300) % 6] + 1e-6 * generator.normal(size=(300, 64))
    seen = count_stages(monkeypatch)
    found = search.nearest(torch.from_numpy(points))
    np.testing.assert_allclose(found.distances, direct(points), rtol=1e-12)
    assert seen[0] == (torch.float32, 300)
    assert seen[1] == (torch.float64, 300)


def test_what_no_bound_certifies_is_taken_by_differences(monkeypatch):
    generator = np.random.default_rng(0)
    points = 1e6 + 1e-9 * generator.integers(-1000, 1000, size=(200, 8))
    points = np.concatenate([points, -points])
    seen = count_stages(monkeypatch)
    found = search.nearest(torch.from_numpy(points))
    np.testing.assert_allclose(found.distances, direct(points), rtol=1e-12)
    assert seen[-1][0] == "differences"
    assert seen[-1][1] > 0


def test_equal_points_cost_no_more():
    found = search.nearest(torch.ones(500, 16))
    assert (found.distances == 0).all()
    assert (found.indices != np.arange(500)[:, None]).all()


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e30, 1e200])
def test_any_unit_of_length(size):
    points = np.random.default_rng(0).normal(size=(60, 4))
    found = search.nearest(torch.from_numpy(points * size)).distances
    np.testing.assert_allclose(found, search.nearest(torch.from_numpy(points)).distances * size, rtol=1e-12)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30, 1e200])
def test_points_of_very_different_length_are_not_rounded_away(size):
    """Some coordinates beyond float32's range beside others within it; the float32 stage must not certify them."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(300, 8)) * 10.0 ** generator.uniform(0, 9, size=(300, 1))
    found = search.nearest(torch.from_numpy(points * size)).distances
    np.testing.assert_allclose(found, direct(points) * size, rtol=1e-12)


def test_subnormal_float32_points_keep_their_digits():
    points = (np.random.default_rng(0).normal(size=(500, 5)) * 1e-41).astype(np.float32)
    np.testing.assert_allclose(search.nearest(torch.from_numpy(points)).distances, direct(points), rtol=1e-12)


def test_the_smallest_float64_points_do_not_overflow():
    points = np.random.default_rng(0).normal(size=(40, 3)) * 1e-309
    found = search.nearest(torch.from_numpy(points)).distances
    np.testing.assert_allclose(found, direct(points * 2.0**1000) / 2.0**1000, rtol=1e-9)


@pytest.mark.parametrize("n", [50, 700])
def test_never_a_matrix_of_all_pairs(monkeypatch, n):
    monkeypatch.setattr(search, "CHUNK_ELEMENTS", 2048)
    largest = []
    plain = torch.addmm

    def addmm(*args, **kwargs):
        made = plain(*args, **kwargs)
        largest.append(made.numel())
        return made

    monkeypatch.setattr(torch, "addmm", addmm)
    points = np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)
    found = search.nearest(torch.from_numpy(points))
    assert max(largest) <= max(2048, n)
    np.testing.assert_allclose(found.distances, direct(points), rtol=1e-12)


def test_reduced_precision_products_are_not_trusted(monkeypatch):
    seen = count_stages(monkeypatch)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        search.nearest(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen[0][0] == torch.float64


NEWER = """
import numpy as np, torch
torch.backends.cuda.matmul.fp32_precision = "tf32"
torch.backends.mkldnn.matmul.fp32_precision = "bf16"
from tailora.environment import environment
from tailora.geometry.nearest import nearest
points = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 5)))
direct = torch.linalg.vector_norm(points[:, None] - points, dim=2).sort(dim=1).values[:, 1:3].numpy()
print(float(np.abs(nearest(points.float().double()).distances / direct - 1).max()) < 1e-5)
print(environment()["flags"]["float32_matmul_precision"])
"""


def test_a_program_that_sets_the_newer_precision_words():
    done = subprocess.run([sys.executable, "-c", NEWER], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["True", "cuda tf32, cpu bf16"], done.stderr


def test_autocast_does_not_reach_the_search():
    points = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    plain = search.nearest(points).distances
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(search.nearest(points).distances, plain)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(4, 120),
    width=st.integers(1, 9),
    offset=st.sampled_from([0.0, 1e3, 1e6]),
    eps=st.sampled_from([0.0, 1e-6, 1e-2, 1.0]),
    copies=st.integers(1, 40),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_exact_whatever_the_points(seed, n, width, offset, eps, copies, dtype):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(-(-n // copies), width))
    points = np.repeat(centres, copies, axis=0)[:n] + eps * generator.normal(size=(n, width)) + offset
    points = points.astype(dtype)
    found = search.nearest(torch.from_numpy(points), 2)
    np.testing.assert_allclose(found.distances, direct(points), rtol=1e-12)
    picked = np.linalg.norm(points[found.indices].astype(np.float64) - points.astype(np.float64)[:, None], axis=2)
    np.testing.assert_allclose(picked, found.distances, rtol=1e-12)
    assert (found.indices != np.arange(n)[:, None]).all()


@pytest.mark.parametrize("wide", [3, 24])
def test_a_subset_from_the_neighbours_of_all(wide):
    points = torch.from_numpy(np.random.default_rng(3).normal(size=(200, 6)))
    known = search.nearest(points, wide)
    rows = np.sort(np.random.default_rng(4).permutation(200)[:100])
    found = search.restricted(points, known, rows, 2)
    alone = search.nearest(points[torch.from_numpy(rows)], 2)
    np.testing.assert_allclose(found.distances, alone.distances, rtol=1e-14)
    np.testing.assert_array_equal(found.indices, alone.indices)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_same_on_a_gpu():
    points = torch.from_numpy(manifolds.near_duplicates(1000, 384, 300, 0.001))
    there = search.nearest(points.cuda())
    np.testing.assert_allclose(there.distances, direct(points.numpy()), rtol=1e-12)
