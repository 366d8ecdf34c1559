"""The intrinsic dimension on a profile's page: every boundary, its interval, and the ranks that GeLoRA makes of it."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from scipy.stats import t
from test_report_html import Page

from tailora.profiles import Profile
from tailora.report.profile_content import ProfileContent, signals_csv
from tailora.report.profile_curves import dimension_by_depth
from tailora.report.profile_dimension import DimensionView
from tailora.report.profile_page import render_profile, signal_rows
from tailora.targets import Target

ESTIMATES = (4.0, 9.0, 9.4, 6.0)
SPREAD = np.array([-1.0, 1.0, -1.0, 1.0]) * 0.1


def block_targets(blocks=3, stack=""):
    found = [Target(name=f"{stack}embed", role="embedding", depth=None, shape=(50, 8), stack="")]
    for depth in range(blocks):
        for role in ("attention.query", "ffn.up"):
            name = f"{stack}layer.{depth}.{role}"
            found.append(Target(name=name, role=role, depth=depth, shape=(8, 8), stack=stack))
    return tuple(found)


def signal_of(targets, estimates=ESTIMATES, spread=SPREAD):
    """Replicates around the estimates; independent ends, so that the rise has a width of its own."""
    found = np.full((len(targets), 2, 1 + len(spread)), np.nan)
    for row, target in zip(found, targets, strict=True):
        if target.depth is not None:
            for side in (0, 1):
                value = estimates[target.depth + side]
                row[side] = [value, *(value + (-1) ** (target.depth + side) * spread)]
    return found


def content_of(targets, signal, **meta):
    return ProfileContent.of(Profile(tuple(targets), {"intrinsic_dimension": signal}, meta))


def test_every_boundary_is_one_point_with_its_interval():
    targets = block_targets()
    view = DimensionView.of(targets, signal_of(targets))
    width = t.ppf(0.975, 3) * np.std(SPREAD, ddof=1)
    (points,) = view.stacks.values()
    assert [(passed, value) for passed, value, *_ in points] == list(enumerate(ESTIMATES))
    for _, value, low, high in points:
        assert (low, high) == (pytest.approx(value - width), pytest.approx(value + width))
    text = dimension_by_depth(view, name="d")
    assert "from 4.00 before block 0 to 6.00 after block 2, highest with 9.40 after block 1" in text
    assert "95 % interval" in text


def test_the_table_by_hand():
    targets = block_targets()
    first, second, third = DimensionView.of(targets, signal_of(targets)).table()
    assert (first["before"], first["after"], first["rise"], first["rank"]) == ("4.00", "9.00", "+5.00", "6")
    assert first["verdict"] == "above noise"
    # 9 and 9.4 round to the same whole number.
    assert (second["rise"], second["rank"], second["verdict"]) == ("+0.40", "1", "–")
    assert (third["rise"], third["rank"]) == ("−3.40", "1")
    width = t.ppf(0.975, 3) * np.std(2 * SPREAD, ddof=1)
    assert first["rise_interval"] == f"{5 - width:+.2f} to {5 + width:+.2f}"


def test_a_rise_within_noise_is_named():
    targets = block_targets()
    view = DimensionView.of(targets, signal_of(targets, spread=10 * SPREAD))
    assert view.table()[0]["verdict"] == "within noise"
    assert any("1 of the 1 blocks (of 3) that GeLoRA gives a rank above 1" in note for note in view.notes)
    text = render_profile(content_of(targets, signal_of(targets, spread=10 * SPREAD)))
    assert '<td class="text warn">within noise</td>' in text
    calm = render_profile(content_of(targets, signal_of(targets)))
    assert "within noise</td>" not in calm


def test_dimensions_that_depend_on_the_number_of_rows_are_named():
    targets = block_targets()
    moved = signal_of(targets)
    moved[:, :, 1:] -= 3.0
    assert any("is another on half of the examples" in note for note in DimensionView.of(targets, moved).notes)


def test_the_page_shows_it_instead_of_an_energy(tmp_path):
    targets = block_targets()
    content = content_of(targets, signal_of(targets), pooling="last")
    assert content.signals == []
    assert content.skipped == []
    text = render_profile(content)
    parsed = Page(text)
    assert len(parsed.named("svg")) == len(parsed.named("figcaption")) == 1
    assert "energy" not in text
    assert "pooled to one vector an example\n    (last)" in text
    assert "from 4 replicates, each on a random half of the examples" in text
    assert text.count("1 signal of 7 targets") == 1
    (row,) = signal_rows(content)
    assert (row["smallest"], row["largest"], row["at"]) == ("4", "9.4", "after block 1")
    rows = list(csv.DictReader(io.StringIO(signals_csv(content))))
    assert (rows[0]["intrinsic_dimension_in"], rows[0]["intrinsic_dimension_out"]) == ("", "")
    assert (rows[1]["intrinsic_dimension_in"], rows[1]["intrinsic_dimension_out"]) == ("4.0", "9.0")
    assert (rows[6]["intrinsic_dimension_in"], rows[6]["intrinsic_dimension_out"]) == ("9.4", "6.0")


def test_a_block_without_a_dimension_is_said_and_the_others_are_shown():
    targets = block_targets()
    signal = signal_of(targets)
    signal[1:3, 0] = np.nan
    view = DimensionView.of(targets, signal)
    assert [row["block"] for row in view.table()] == ["1", "2"]
    assert any(
        "The input of the block of 'layer.0.attention.query' has no intrinsic dimension" in n for n in view.notes
    )
    assert view.ends_of("layer.0.ffn.up") == ["", 9.0]
    signal[:] = np.nan
    text = render_profile(content_of(targets, signal))
    assert not Page(text).named("svg")
    assert "has no intrinsic dimension" in text


@pytest.mark.parametrize("replicates", [0, 1])
def test_too_few_replicates_have_no_interval(replicates):
    targets = block_targets()
    content = content_of(targets, signal_of(targets, spread=SPREAD[:replicates]))
    assert [row["before_interval"] for row in content.dimension.table()] == ["unknown"] * 3
    text = render_profile(content)
    assert "too few replicates for intervals" in text
    assert "95 % interval</" not in text.partition("<svg")[2].partition("</svg>")[0]


def test_stacks_have_a_line_each():
    targets = (*block_targets(2, "encoder"), *block_targets(2, "decoder"))
    view = DimensionView.of(targets, signal_of(targets, (4.0, 5.0, 7.0)))
    assert list(view.stacks) == ["encoder", "decoder"]
    text = dimension_by_depth(view, name="d")
    assert "encoder: from 4.00 before block 0" in text
    assert "decoder: from 4.00 before block 0" in text
    assert [row["block"] for row in view.table()] == ["encoder 0", "encoder 1", "decoder 0", "decoder 1"]


def test_an_end_that_the_next_block_does_not_take_in_is_a_point_of_its_own():
    targets = block_targets(2)
    signal = signal_of(targets, (4.0, 5.0, 7.0))
    signal[3:, 0] += 2.0
    (points,) = DimensionView.of(targets, signal).stacks.values()
    assert [(passed, value) for passed, value, *_ in points] == [(0, 4.0), (1, 5.0), (1, 7.0), (2, 7.0)]


def test_the_numbers_for_programs():
    targets = block_targets()
    signal = signal_of(targets, spread=10 * SPREAD)
    found = json.loads(json.dumps(DimensionView.of(targets, signal).as_json(), allow_nan=False))
    first, second, third = found["blocks"]
    width = 10 * t.ppf(0.975, 3) * np.std(SPREAD, ddof=1)
    assert (first["stack"], first["depth"], first["before"], first["after"]) == ("", 0, *ESTIMATES[:2])
    assert first["before_interval"] == pytest.approx([ESTIMATES[0] - width, ESTIMATES[0] + width])
    assert first["after_interval"] == pytest.approx([ESTIMATES[1] - width, ESTIMATES[1] + width])
    assert first["rise_interval"] == pytest.approx([5 - 2 * width, 5 + 2 * width])
    assert [block["rank"] for block in found["blocks"]] == [6, 1, 1]
    assert [block["within_noise"] for block in found["blocks"]] == [True, False, False]
    assert (second["depth"], third["after"], found["replicates"]) == (1, ESTIMATES[3], 4)
    assert len(found["notes"]) == len(DimensionView.of(targets, signal).notes) > 0
    bare = DimensionView.of(targets, signal[:, :, :1]).as_json()
    assert bare["replicates"] == 0
    assert all(block[f"{end}_interval"] is None for block in bare["blocks"] for end in ("before", "after", "rise"))
