"""The page of a profile: any signal whose first axis is the targets, nothing else, and numbers that can be checked."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from test_report_html import Page

from tailora.errors import UserError
from tailora.profiles import Profile
from tailora.report.profile_content import ProfileContent, signals_csv
from tailora.report.profile_figures import is_logarithmic, spectra, value_heat_map, values_by_depth
from tailora.report.profile_page import is_profile, render_profile, signal_rows, write_profile_report
from tailora.targets import Target

EVIL = '<script>alert("x")</script>&$a_b$'


def make_targets(layers=3):
    found = [Target(name="embed", role="embedding", depth=None, shape=(50, 8))]
    for depth in range(layers):
        for role in ("attention.query", "ffn.up"):
            found.append(Target(name=f"layer.{depth}.{role}", role=role, depth=depth, shape=(8, 8)))
    return tuple(found)


def make_profile(**signals):
    targets = make_targets()
    rng = np.random.default_rng(3)
    spectrum = np.sort(np.exp(rng.normal(-3, 3, (len(targets), 6))), axis=1)[:, ::-1]
    known = {"fisher": np.exp(rng.normal(-9, 3, len(targets))), "gradient_spectrum": spectrum}
    meta = {"model_class": "Tiny", "examples": 8, "batches": 1, "loss": "token", "mean_loss": 0.69347147643566}
    return Profile(targets, known | signals, meta)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    make_profile(intrinsic_dimension=np.linspace(8, 14, 7)).save(folder)
    page, content = write_profile_report(folder, figures=folder / "figures")
    return page, content


def test_the_page_is_whole_and_self_contained(written):
    page, content = written
    text = page.read_text()
    parsed = Page(text)
    assert "Tailora profile: Tiny" in text
    assert "3 signals of 7 targets, measured on 8 examples in 1 batch, loss token." in text
    assert [signal.name for signal in content.signals] == ["fisher", "gradient_spectrum", "intrinsic_dimension"]
    # A map and a course through the layers for each, and spectra for the one that has them.
    assert len(parsed.named("svg")) == len(parsed.named("figcaption")) == 7
    assert len(parsed.ids) == len(set(parsed.ids))
    assert not [tag for tag, _ in parsed.tags if tag in {"script", "link", "img", "iframe"}]
    for link in re.findall(r'href="#([\w-]+)"', text):
        assert f'id="{link}"' in text
    assert "0.6935" in text
    assert sorted(path.suffix for path in (page.parent / "figures").iterdir()).count(".png") == 7


def test_every_figure_is_explained(written):
    page, _ = written
    for caption in re.findall(r"<figcaption>(.*?)</figcaption>", page.read_text(), flags=re.DOTALL):
        assert re.search(r"<p>.+\.</p>", caption)


def test_the_csv_by_hand(written):
    page, content = written
    rows = list(csv.DictReader(io.StringIO((page.parent / "signals.csv").read_text())))
    profile = Profile.load(page.parent)
    assert [row["target"] for row in rows] == [target.name for target in profile.targets]
    assert rows[0] | {"depth": "", "shape": "50x8", "role": "embedding"} == rows[0]
    for place, row in enumerate(rows):
        assert float(row["fisher"]) == profile.signals["fisher"][place]
        energy = sum(float(value) ** 2 for value in profile.signals["gradient_spectrum"][place])
        assert float(row["gradient_spectrum_energy"]) == pytest.approx(energy, rel=1e-12)
    assert signals_csv(content) == (page.parent / "signals.csv").read_text()


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(()),
        np.zeros(6),
        np.zeros((7, 0)),
        np.zeros((3, 7)),
        np.zeros(7),
        np.full(7, np.nan),
        np.full(7, np.inf),
        -np.arange(7.0),
        np.full(7, 1e-300),
        np.full(7, 1e300),
        np.array([0, 1e-12, 1e-9, np.nan, 1.0, 1e3, 1e6]),
        np.ones((7, 1)),
        np.zeros((7, 5)),
        -np.ones((7, 5)),
        np.array([[np.nan] * 4] * 3 + [[1.0, 0.5, 0.0, 0.0]] * 4),
        np.ones((7, 2, 3)),
    ],
    ids=lambda values: f"{values.shape}-{values.ravel()[:1]}",
)
def test_any_array_gives_a_page(values):
    content = ProfileContent.of(make_profile(odd=values))
    text = render_profile(content)
    Page(text)
    for figure in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ET.fromstring(figure)
    shaped = values.ndim > 0 and len(values) == 7 and values.size > 0
    assert ("odd" in [signal.name for signal in content.signals]) == shaped
    assert bool(content.skipped) != shaped


def test_no_targets_and_no_signals():
    Page(render_profile(ProfileContent.of(Profile((), {}))))
    Page(render_profile(ProfileContent.of(Profile((), {"fisher": np.zeros(0)}))))
    assert "no signal with an entry per target" in render_profile(ProfileContent.of(Profile(make_targets(), {})))


def test_names_are_escaped():
    targets = (Target(name=EVIL, role="other", depth=0, shape=(2, 2), stack=EVIL),)
    profile = Profile(targets, {EVIL: np.ones(1), "x" + EVIL: np.ones(3)}, {EVIL: EVIL, "model_class": EVIL})
    text = render_profile(ProfileContent.of(profile))
    Page(text)
    assert "<script" not in text
    for figure in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ET.fromstring(figure)


def test_scales():
    assert is_logarithmic({"a": 1.0, "b": 11.0})
    assert not is_logarithmic({"a": 1.0, "b": 9.0})
    assert not is_logarithmic({"a": -1.0, "b": 100.0})
    assert not is_logarithmic({"a": 0.0, "b": 0.0})
    targets = [target.to_dict() for target in make_targets()]
    narrow = {target["name"]: 8.0 + number for number, target in enumerate(targets)}
    assert ">12<" in value_heat_map(targets, narrow, name="m", label="dimension")
    wide = {target["name"]: 10.0**number for number, target in enumerate(targets)}
    text = value_heat_map(targets, wide, name="m", label="energy")
    assert ">100<" in text
    assert "of the largest" in text
    tiny = {name: value * 1e-6 for name, value in narrow.items()}
    assert "× 1e" in value_heat_map(targets, tiny, name="m", label="dimension")
    assert value_heat_map(targets, {}, name="m", label="x") is None


def test_several_targets_in_one_place_show_their_mean():
    targets = [Target(name=f"expert.{n}", role="ffn.up", depth=0, shape=(4, 4)).to_dict() for n in range(2)]
    assert ">4<" in value_heat_map(targets, {"expert.0": 3.0, "expert.1": 5.0}, name="m", label="x")


def test_means_by_layer_by_hand():
    targets = [target.to_dict() for target in make_targets(2)]
    values = {"layer.0.attention.query": 1.0, "layer.0.ffn.up": 3.0, "layer.1.attention.query": 4.0, "embed": 99.0}
    text = values_by_depth(targets, values, name="d", label="x")
    assert "from 2 at layer 0 to 4 at layer 1, highest with 4 at layer 1" in text
    assert values_by_depth(targets[:3], values, name="d", label="x") is None


def test_the_strongest_target_of_a_role_speaks_for_it():
    targets = [target.to_dict() for target in make_targets(2)]
    rows = {
        "layer.0.attention.query": np.array([3.0, 1.0, 0.0]),
        "layer.1.attention.query": np.array([2.0, 2.0, 2.0]),
        "layer.0.ffn.up": np.zeros(3),
    }
    text = spectra(targets, rows, name="s", label="spectrum")
    # Energies 10 and 12: layer 1 is shown, and needs all three of its equal values for 90 %.
    assert "attention query 1 holds 90 % of its energy in 3 of 3" in text
    assert "attention query 0" not in text
    assert "feed-forward" not in text
    assert spectra(targets, {"layer.0.ffn.up": np.zeros(3)}, name="s", label="spectrum") is None


def test_what_is_a_profile(tmp_path):
    make_profile().save(tmp_path)
    assert is_profile(tmp_path)
    (tmp_path / "status.json").write_text("{}")
    assert not is_profile(tmp_path)
    with pytest.raises(UserError, match="is a folder"):
        write_profile_report(tmp_path, tmp_path)
    (tmp_path / "profile.json").write_text("{")
    with pytest.raises(UserError):
        write_profile_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_cross_spectrum_counts_what_is_positive_and_is_drawn_on_a_linear_scale():
    values = np.zeros((7, 5))
    values[:, :4] = [1.0, 3.0, -2.0, 0.5]
    content = ProfileContent.of(make_profile(gradient_cross_spectrum=values))
    (view,) = [signal for signal in content.signals if signal.name == "gradient_cross_spectrum"]
    assert view.column == "gradient_cross_spectrum_positive_energy"
    assert set(view.values.values()) == {10.25}
    text = spectra(content.targets, view.spectra, name="s", label="x")
    # 9 of 10.25 is less than 90 %; the last zero is padding; the values are not sorted.
    assert "attention query 0 holds 90 % of its energy in 2 of 4" in text
    assert "largest first" not in text
    assert "−2" in text
    assert "on a linear scale" in render_profile(content)
    falling = spectra(content.targets, {"embed": np.array([3.0, 1.0, 0.0, 0.0])}, name="s", label="x")
    assert "embedding holds 90 % of its energy in 1 of 2" in falling
    assert "largest first" in falling


def test_shares_are_no_amplitudes():
    shares = np.zeros((7, 6))
    shares[:, :3] = [0.3, 0.25, 0.1]
    content = ProfileContent.of(make_profile(explained_variance=shares))
    (view,) = [signal for signal in content.signals if signal.name == "explained_variance"]
    assert view.column == "explained_variance_largest"
    assert set(view.values.values()) == {0.3}
    text = spectra(content.targets, view.spectra, name="s", label="x", shares=True)
    assert "attention query 0 holds half of its variance in 2 of 3" in text
    few = spectra(content.targets, {"embed": np.array([0.2, 0.1])}, name="s", label="x", shares=True)
    assert "embedding holds less than half of its variance in all 2" in few


def test_a_singular_weight_is_called_so():
    values = np.array([2.0, np.finfo(np.float64).max, 3.0, np.inf, 5.0, np.nan, 900.0])
    content = ProfileContent.of(make_profile(condition_number=values))
    (view,) = [signal for signal in content.signals if signal.name == "condition_number"]
    names = [target["name"] for target in content.targets]
    assert view.singular == (names[1], names[3])
    assert max(view.values.values()) == 900.0
    assert view.missing == 1
    text = render_profile(content)
    assert text.count(">sing.<") == 2
    assert "2 weights are singular (sing. in the map)" in text
    assert "one a target; unknown for 1; 2 weights singular" in text
    (row,) = [row for row in signal_rows(content) if row["signal"] == "condition number"]
    assert (row["smallest"], row["largest"], row["at"]) == ("2", "singular", names[1])
    cells = [row["condition_number"] for row in csv.DictReader(io.StringIO(signals_csv(content)))]
    assert cells == ["2.0", "inf", "3.0", "inf", "5.0", "", "900.0"]
    Page(render_profile(ProfileContent.of(make_profile(condition_number=np.full(7, np.finfo(np.float64).max)))))


def test_only_a_condition_number_is_singular():
    content = ProfileContent.of(make_profile(stable_rank=np.array([1.0, np.inf, 2, 3, 4, 5, 6])))
    (view,) = [signal for signal in content.signals if signal.name == "stable_rank"]
    assert (view.singular, view.missing) == ((), 1)
    assert "sing." not in render_profile(content)


def test_a_spectrum_with_a_gap_is_unknown():
    values = np.ones((7, 3))
    values[2, 1] = np.nan
    content = ProfileContent.of(make_profile(weight_spectrum=values))
    (view,) = [signal for signal in content.signals if signal.name == "weight_spectrum"]
    assert view.missing == 1
    assert content.targets[2]["name"] not in view.values
    assert content.targets[2]["name"] not in view.spectra
