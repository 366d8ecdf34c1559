"""Estimators of the intrinsic dimension: reference values, twins, invariances and scikit-dimension."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tailora
from geometry import manifolds
from reference import geometry_slow as slow
from tailora.errors import UnknownNameError, UserError
from tailora.geometry import METHODS

dimension = tailora.intrinsic_dimension
BALL_30 = manifolds.ball(30, 5, 0, 10)
BALL_300 = manifolds.ball(300, 5, 0, 10)
SPHERE_300 = manifolds.sphere(300, 4, 1)


@pytest.mark.parametrize(
    ("points", "options", "value", "digits"),
    [
        (BALL_30, {}, 4.52231, 5),
        (BALL_30, {"discard": 0.05}, 4.63403, 5),
        (BALL_30, {"cdf": "(i-1)/N"}, 4.05496, 5),
        (BALL_30, {"cdf": "(i-1)/N", "discard": 0.05}, 4.11323, 5),
        (BALL_300, {}, 4.36217653, 8),
        (BALL_300, {"fit": "mle", "discard": 0.0}, 4.11313892, 8),
        (SPHERE_300, {}, 3.22120513, 8),
        (SPHERE_300, {"fit": "mle", "discard": 0.0}, 3.32807161, 8),
        (manifolds.ball(500, 5, 0), {}, 4.159093274, 9),
        (manifolds.sphere(500, 30, 1), {}, 21.534662028, 9),
        (manifolds.ball(2000, 2, 2), {}, 2.0024, 4),
        (manifolds.ball(2000, 5, 5), {}, 4.7743, 4),
        (manifolds.ball(2000, 10, 10), {}, 9.2396, 4),
        (manifolds.ball(2000, 2, 2), {"fit": "mle", "discard": 0.0}, 2.0057, 4),
        (manifolds.ball(2000, 5, 5), {"fit": "mle", "discard": 0.0}, 4.7433, 4),
        (manifolds.ball(2000, 10, 10), {"fit": "mle", "discard": 0.0}, 9.3374, 4),
    ],
)
def test_published_values_to_every_digit(points, options, value, digits):
    assert round(dimension(points, **options).value, digits) == value


@pytest.mark.parametrize("fit", ["linear", "mle"])
@pytest.mark.parametrize("cdf", ["i/N", "(i-1)/N"])
@pytest.mark.parametrize("discard", [0.0, 0.1, 0.37])
def test_twonn_equals_its_twin(fit, cdf, discard):
    points = manifolds.ball(80, 3, 7, 6)
    points[5] = points[9]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = dimension(points, discard=discard, fit=fit, cdf=cdf)
    assert found.value == pytest.approx(slow.twonn(points, discard, fit, cdf), rel=1e-12)
    assert (found.points, found.duplicates) == (78, 2)


@pytest.mark.parametrize("k", [2, 5, 20])
def test_levina_bickel_equals_its_twin(k):
    points = manifolds.gaussian(90, 4, 1, 12)
    assert dimension(points, "levina-bickel", k=k).value == pytest.approx(slow.levina_bickel(points, k), rel=1e-12)


@pytest.mark.parametrize(("k", "threshold"), [(5, 0.05), (20, 0.05), (20, 0.3)])
def test_local_pca_equals_its_twin(k, threshold):
    points = manifolds.gaussian(90, 4, 1, 12) + 1000
    found = dimension(points, "local-pca", k=k, threshold=threshold)
    assert found.value == slow.local_pca(points, k, threshold)


def test_standard_errors_of_the_exact_model():
    """Of N ratios drawn from the model, each estimator's spread is what it says, and 0.033 d at N = 1000."""
    from tailora.geometry.nearest import Neighbours

    generator = np.random.default_rng(0)
    cloud = torch.zeros(1000, 1)
    for fit, discard, spread in (("linear", 0.1, 0.034), ("mle", 0.0, 0.0316), ("mle", 0.1, 0.0333)):
        options = {"fit": fit, "discard": discard, "cdf": "i/N"}
        found = []
        for _ in range(300):
            mu = generator.uniform(size=1000) ** (-1 / 7.0)
            known = Neighbours(np.stack([np.ones(1000), mu], axis=1), np.zeros((1000, 2), dtype=np.int64))
            found.append(METHODS["twonn"].estimate(cloud, known, options))
        values = np.array([one.value for one in found])
        said = np.mean([one.std_error for one in found]) / 7
        assert values.mean() == pytest.approx(7, rel=0.008)
        assert said == pytest.approx(spread, rel=0.03)
        assert values.std(ddof=1) / 7 == pytest.approx(said, rel=0.13)


@pytest.mark.parametrize(("n", "kept"), [(30, 27), (500, 450)])
def test_the_linear_fit_s_error_equals_its_twin(n, kept):
    found = dimension(manifolds.ball(n, 3, 0))
    assert found.std_error / found.value == pytest.approx(slow.linear_std_error(n, kept), rel=1e-10)


TABLE = [
    ("cube", 2, 1.98, 0.08),
    ("cube", 5, 4.66, 0.19),
    ("cube", 10, 8.47, 0.28),
    ("cube", 20, 15.03, 0.44),
    ("gaussian", 2, 2.02, 0.08),
    ("gaussian", 5, 5.03, 0.27),
    ("gaussian", 10, 9.53, 0.42),
    ("sphere", 2, 1.99, 0.09),
    ("sphere", 5, 4.99, 0.17),
    ("sphere", 10, 9.32, 0.33),
    ("swiss_roll", None, 2.00, 0.07),
]
LARGE = [
    ("cube", 2, 1.98, 0.04),
    ("cube", 5, 4.72, 0.15),
    ("cube", 10, 8.58, 0.29),
    ("cube", 20, 15.45, 0.35),
    ("gaussian", 2, 2.01, 0.04),
    ("gaussian", 5, 5.05, 0.08),
    ("gaussian", 10, 9.71, 0.27),
    ("sphere", 2, 2.01, 0.05),
    ("sphere", 5, 4.96, 0.13),
    ("sphere", 10, 9.39, 0.22),
    ("swiss_roll", None, 1.98, 0.06),
]


def check_bias(kind, d, mean, spread, n, seeds):
    """The mean over seeds lies within four standard errors of the table's mean (20 seeds there)."""
    draw = getattr(manifolds, kind)
    values = [dimension(draw(n, s) if d is None else draw(n, d, s)).value for s in range(100, 100 + seeds)]
    allowed = 4 * spread * np.sqrt(1 / seeds + 1 / 20) + 0.005
    assert np.mean(values) == pytest.approx(mean, abs=allowed)


@pytest.mark.parametrize(("kind", "d", "mean", "spread"), TABLE)
def test_bias_at_1000_points(kind, d, mean, spread):
    check_bias(kind, d, mean, spread, 1000, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "d", "mean", "spread"), LARGE)
def test_bias_at_2500_points(kind, d, mean, spread):
    check_bias(kind, d, mean, spread, 2500, 10)


@pytest.mark.parametrize("method", METHODS.names())
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-6, 0.3, 1e7]), shift=st.floats(-100, 100))
def test_what_must_not_matter(method, seed, scale, shift):
    generator = np.random.default_rng(seed)
    points = manifolds.ball(80, 3, seed, 6)
    plain = dimension(points, method).value
    turn, _ = np.linalg.qr(generator.normal(size=(6, 6)))
    for other in (
        points + shift,
        points @ turn,
        points * scale,
        np.pad(points, ((0, 0), (0, 4))),
        points[generator.permutation(80)],
        torch.from_numpy(points),
    ):
        assert dimension(other, method).value == pytest.approx(plain, rel=1e-9)


def test_dtypes_and_read_only_arrays():
    points = manifolds.ball(200, 3, 0)
    points.flags.writeable = False
    plain = dimension(points).value
    assert dimension(points.astype(np.float32)).value == pytest.approx(plain, rel=1e-4)
    assert dimension(torch.from_numpy(points.astype(np.float32))).value == pytest.approx(plain, rel=1e-4)
    assert dimension(torch.tensor(points).half()).value == pytest.approx(plain, rel=0.05)
    grid = np.random.default_rng(0).integers(0, 10**6, size=(100, 2))
    assert dimension(grid).value == dimension(grid.astype(np.float64)).value


def test_the_callers_points_are_not_touched():
    for dtype in (np.float32, np.float64):
        points = manifolds.ball(100, 3, 0).astype(dtype)
        before = points.copy()
        for method in METHODS.names():
            dimension(points, method, **({} if method == "twonn" else {"k": 10}))
        np.testing.assert_array_equal(points, before)


def test_the_result_is_frozen_and_says_what_was_done():
    found = dimension(BALL_300)
    assert found.method == "twonn, linear, discard 0.1, i/N"
    assert (found.points, found.duplicates) == (300, 0)
    assert 0.2 < found.std_error < 0.4
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.value = 3.0  # type: ignore[misc]


NAN = BALL_30.copy()
NAN[7, 2] = np.nan


@pytest.mark.parametrize(
    ("points", "options", "sentence"),
    [
        (np.zeros(5), {}, r"must be \[N, D\], one point a row, not \[5\]"),
        (np.zeros((2, 3)), {}, "at least 3 points"),
        (np.zeros((5, 0)), {}, "at least 3 points"),
        (np.zeros((9, 4)), {}, "9 points leave 0 .9 of them coincide"),
        (NAN, {}, "point number 7 is not finite; leave out the 1 such"),
        (np.array([["a"] * 3] * 3), {}, "points must be numbers, not <U1"),
        (BALL_30 * 1j, {}, "points must be numbers, not complex"),
        (torch.zeros(4, 2, dtype=torch.complex64), {}, "must be real numbers"),
        (BALL_30, {"discard": 1.0}, "discard=1.0 must be a number from 0 and below 1"),
        (BALL_30, {"discard": 0.95}, "30 points leave 1"),
        (BALL_30, {"fit": "mlee"}, "unknown fit 'mlee'; did you mean 'mle'"),
        (BALL_30, {"cdf": "i-1/N"}, "unknown cdf 'i-1/N'; did you mean '.i-1./N'"),
        (BALL_30, {"method": "2nn"}, "unknown method of estimating an intrinsic dimension '2nn'"),
        (BALL_30, {"method": "levina-bickel", "k": 30}, "looks at 30 neighbours .* only 30 points"),
        (BALL_30, {"method": "levina-bickel", "k": 1}, "k=1 .* at least 2"),
        (np.zeros((40, 4)), {"method": "levina-bickel"}, "0 of 40; give more distinct"),
        (np.zeros((60, 4)), {"method": "local-pca"}, "0 of 60; give more distinct"),
        (BALL_30, {"method": "local-pca", "k": 5, "threshold": 0.0}, "threshold=0.0 must be a number above 0"),
        (np.stack(np.meshgrid(range(6), range(6)), -1).reshape(-1, 2), {}, "every ratio .* is 1"),
    ],
)
def test_points_and_options_that_cannot_be(points, options, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        dimension(points, **options)
    assert "\n" not in str(caught.value)


def test_unknown_method_is_an_unknown_name():
    with pytest.raises(UnknownNameError):
        dimension(BALL_30, "pca")


def test_an_option_without_effect_is_said():
    with pytest.warns(UserWarning, match="option k=5 has no effect on method 'twonn'"):
        dimension(BALL_30, k=5)
    with pytest.warns(UserWarning, match="option fit='mle' has no effect"):
        dimension(BALL_300, "levina-bickel", fit="mle")


@pytest.fixture(scope="module")
def benchmark_manifolds():
    """All benchmark manifolds of scikit-dimension, 400 points each."""
    skdim = pytest.importorskip("skdim", reason="scikit-dimension is not installed")
    return skdim, skdim.datasets.BenchmarkManifolds(random_state=0).generate("all", n=400)


def test_scikit_dimension_agrees(benchmark_manifolds):
    skdim, clouds = benchmark_manifolds
    assert len(clouds) >= 20
    for name, points in clouds.items():
        theirs = skdim.id.TwoNN().fit(points).dimension_
        assert dimension(points).value == pytest.approx(theirs, rel=1e-8), name
        censored = skdim.id.TwoNN(method="mle").fit(points).dimension_
        assert dimension(points, fit="mle").value == pytest.approx(censored, rel=1e-8), name
