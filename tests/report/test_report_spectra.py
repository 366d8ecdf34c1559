"""Spectra with many components or many roles: layer numbers and values that can be read."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from tailora.profiles import Profile
from tailora.report.plots import Plot, round_counts
from tailora.report.profile_content import ProfileContent
from tailora.report.profile_figures import LONG, is_folded, spectra
from tailora.report.profile_page import render_profile
from tailora.targets import Target

ROLES = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "ffn.gate",
    "ffn.up",
    "ffn.down",
    "head",
)


def targets_of(roles, depth):
    return [Target(name=f"m.{role}", role=role, depth=depth, shape=(4, 4)).to_dict() for role in roles]


def words(svg):
    return [element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text") if element.text]


@pytest.mark.parametrize("depth", [4, 11, 126])
@pytest.mark.parametrize("roles", [ROLES, ("cross.query", "cross.output"), ("ffn.gate",)])
def test_every_spectrum_keeps_its_layer_in_the_legend(depth, roles):
    targets = targets_of(roles, depth)
    svg = spectra(targets, {target["name"]: np.array([3.0, 2.0]) for target in targets}, name="s", label="x")
    labels = [word for word in words(svg) if word.endswith(f" {depth}")]
    assert len(set(labels)) == len(roles)
    assert not any("…" in label for label in labels)


def test_full_names_where_they_fit_and_short_ones_where_one_does_not():
    rows = {f"m.{role}": np.array([3.0, 2.0]) for role in ROLES}
    assert "feed-forward gate 4" in words(spectra(targets_of(ROLES, 4), rows, name="s", label="x"))
    svg = spectra(targets_of(ROLES, 126), rows, name="s", label="x")
    assert {"ffn gate 126", "attn. query 126", "head 126"} <= set(words(svg))
    # Who cannot see the figure reads the full names.
    assert "feed-forward gate 126 holds" in ET.fromstring(svg).get("aria-label")


def test_a_long_label_loses_words_and_not_its_number():
    assert Plot(["some words of a very long label 12"], left=1).labels == ["some words of a very… 12"]
    assert Plot(["x" * 30], left=1).labels == ["x" * 23 + "…"]
    assert Plot([*"abcdef", "some words of a label 7"], left=1).labels[-1] == "some words of a l… 7"
    # Where the shorter labels could not be told apart, they stay longer.
    assert Plot([*"abcdef", "some words of a label one", "some words of a label two"], left=1).labels[-1].endswith("t…")


def signed_profile(components):
    targets = tuple(Target(name=f"layer.{n}", role="attention.query", depth=n, shape=(300, 300)) for n in range(2))
    noise = np.random.default_rng(0).normal(0, 1e-4, (2, components))
    noise[:, :3] = [0.8, 0.1, -0.02]
    return ProfileContent.of(Profile(targets, {"gradient_cross_spectrum": noise}))


def test_many_signed_values_are_spread_over_logarithmic_axes():
    page = render_profile(signed_profile(256))
    assert "logarithmic on both sides of zero" in page
    assert "on a linear scale" not in page
    svg = next(figure for figure in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL) if "Spectra of" in figure)
    shown = words(svg)
    assert {"1", "2", "5", "10", "200", "0.1", "−0.01", "0"} <= set(shown)
    # On a linear axis the fifth of 256 components would be 2 % of the way along.
    places = {word: float(re.search(r'x="([\d.]+)"', found).group(1)) for found, word in marks_of(svg)}
    assert places["5"] - places["1"] > 0.25 * (places["200"] - places["1"])


def marks_of(svg):
    return re.findall(r"(<text [^>]*>)(1|5|200)</text>", svg)


def test_few_signed_values_stay_on_a_linear_scale():
    assert "on a linear scale" in render_profile(signed_profile(LONG))
    assert "logarithmic on both sides" not in render_profile(signed_profile(LONG))


def test_padding_does_not_make_a_spectrum_long():
    values = np.zeros(256)
    values[:4] = [3.0, 1.0, -1.0, 0.5]
    assert not is_folded([values])
    assert is_folded([values, np.ones(256)])
    assert not is_folded([np.ones(256)])
    assert not is_folded([])


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1.0, 1e30])
def test_any_size_can_be_drawn(size):
    values = np.full(100, size)
    values[1::2] *= -1
    ET.fromstring(spectra(targets_of(["ffn.up"], 0), {"m.ffn.up": values}, name="s", label="x"))


def test_round_counts():
    assert round_counts(1) == [1]
    assert round_counts(256) == [1, 2, 5, 10, 20, 50, 100, 200]
