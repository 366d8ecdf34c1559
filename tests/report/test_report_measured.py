"""How a profile was measured, on its page: in words, and as a curve of the calibration size."""

from __future__ import annotations

import pytest
from test_report_html import Page
from test_report_profile import make_profile, make_targets

from tailora.profiles import Profile
from tailora.report.profile_content import ProfileContent
from tailora.report.profile_curves import calibration_curve
from tailora.report.profile_measured import calibration_points, calibration_words, how_measured, measured_rows
from tailora.report.profile_page import render_profile

CURVE = [[8, 0.7], [16, 0.95], [32, 0.995], [64, 1.0]]


def page_of(**meta):
    profile = make_profile()
    return render_profile(ProfileContent.of(Profile(profile.targets, profile.signals, dict(profile.meta) | meta)))


def test_the_curve_is_drawn_and_explained():
    text = page_of(calibration_curve=CURVE, stability=0.981)
    Page(text)
    assert "0.7 at 8, 0.95 at 16, 0.995 at 32, 1 at 64" in text
    assert "with a Spearman correlation of 0.981." in text.replace("\n", " ")
    assert "From 32 examples on the ranking correlated with the final one at 0.99 or more." in text
    assert 'href="#calibration"' in text
    svg = calibration_curve(calibration_points({"calibration_curve": CURVE}), name="c")
    for examples in (8, 16, 32, 64):
        assert f">{examples}<" in svg


def test_old_profiles_have_no_curve():
    text = page_of()
    assert "Calibration size" not in text
    assert "#calibration" not in text
    assert calibration_curve([], name="c") is None
    assert calibration_curve([(8, 1.0)], name="c") is None


def test_halves_without_a_curve_are_told_in_words():
    text = page_of(calibration_curve=[], stability=-0.25)
    assert "Spearman correlation of −0.25." in text
    assert "Ranking against examples" not in text


@pytest.mark.parametrize(
    "curve", [None, "x", 3, [1, 2], [["a", "b"]], [[1]], [[0, 1.0]], [[4, float("nan")]], [[True, 1.0]], [None]]
)
def test_what_is_no_curve_is_left_out(curve):
    assert calibration_points({"calibration_curve": curve}) == []
    Page(page_of(calibration_curve=curve))


def test_the_curve_of_one_part_is_not_that_of_a_merged_profile():
    assert calibration_points({"calibration_curve": CURVE, "merged": ["ab"]}) == []
    assert "Calibration size" not in page_of(calibration_curve=CURVE, stability=None, merged=["ab" * 32, "cd" * 32])


def test_a_ranking_settles_once_it_never_leaves_again():
    words = calibration_words({"calibration_curve": [[8, 0.999], [16, 0.9], [32, 0.99], [64, 1.0]]})
    assert words.startswith("From 32 examples on")
    unsettled = calibration_words({"calibration_curve": [[8, 0.999], [16, 0.9], [20, 1.0]]})
    assert "it had not settled" in unsettled
    assert calibration_words({}) == ""


def test_close_points_do_not_share_a_label():
    svg = calibration_curve([(64, 0.9), (128, 0.95), (130, 1.0)], name="c")
    assert ">130<" in svg
    assert ">128<" not in svg
    assert ">64<" in svg


def test_what_is_new_in_the_meta_is_said_in_words():
    meta = {
        "labels": "model",
        "mode": "train",
        "skipped": [f"row {number}" for number in range(14)],
        "stability": None,
        "options": {"sketch": 256},
        "merged": ["ab" * 32, "cd" * 32],
        "one_by_one": "",
        "seconds": 150.0,
        "examples": 12000,
    }
    rows = dict(measured_rows(meta))
    assert rows["labels"] == "model (drawn from the model's predictions: the true Fisher)"
    assert rows["mode"] == "train (the model's own dropout)"
    assert rows["skipped"].startswith("14: row 0, row 1, ")
    assert rows["skipped"].endswith("row 11 and 2 more")
    assert rows["stability"] == "not measured"
    assert rows["options"] == "sketch 256"
    assert rows["merged"] == "2: abababababab, cdcdcdcdcdcd"
    assert rows["seconds"] == "2.5 min"
    assert rows["examples"] == "12,000"
    assert "one by one" not in rows
    assert dict(measured_rows({"labels": "data", "skipped": [], "options": {}})) == {
        "labels": "data (the data's own labels: the empirical Fisher)",
        "skipped": "none",
        "options": "defaults",
    }


def test_the_summary_says_what_a_reader_must_know():
    said = how_measured({"examples": 8, "batches": 2, "loss": "token", "labels": "model", "mode": "train"})
    assert said == (
        ", measured on 8 examples in 2 batches, loss token, labels drawn from the model's own predictions, in training "
        "mode with the model's own dropout."
    )
    said = how_measured({"examples": 8, "merged": ["a", "b"], "skipped": ["row 3"], "one_by_one": "inputs are shared"})
    assert said == (
        ", measured on 8 examples, merged from 2 profiles. 1 example was not finite and left out. Examples were taken "
        "one at a time: inputs are shared."
    )
    assert how_measured({"examples": 0, "batches": 0, "loss": ""}) == ", read from the weights alone."
    assert ProfileContent.of(Profile(make_targets(), {})).summary.startswith("0 signals of 7 targets. No adapter")
