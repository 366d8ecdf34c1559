"""Contrast after WCAG 2: words on everything that the page and its figures put behind them, light, dark and printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tailora.report
from tailora.report import style
from tailora.report.heatmaps import FULL

CSS = (Path(tailora.report.__file__).parent / "templates" / "report.css").read_text()
SCHEMES = ("light", "dark", "print")


def scheme(name):
    """The style sheet's variables under one scheme; dark and print replace some of the light ones."""
    blocks = re.findall(r":root \{(.*?)\}", CSS, flags=re.DOTALL)
    assert len(blocks) == 3
    tables = [dict(re.findall(r"--(\w+):\s*(#[0-9a-f]{6})", block)) for block in blocks]
    return tables[0] | tables[SCHEMES.index(name)]


def channels(colour):
    return [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]


def luminance(parts):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def over(colour, opacity, paper):
    return [opacity * c + (1 - opacity) * p for c, p in zip(channels(colour), channels(paper), strict=True)]


def contrast(first, second):
    dark, light = sorted(luminance(channels(c) if isinstance(c, str) else c) for c in (first, second))
    return (light + 0.05) / (dark + 0.05)


def test_the_formula_by_hand():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)


@pytest.mark.parametrize("name", SCHEMES)
def test_words_on_the_page(name):
    colours = scheme(name)
    for word in ("ink", "quiet", "accent", "warn"):
        for paper in ("paper", "card", "wash"):
            assert contrast(colours[word], colours[paper]) >= 4.5, (word, paper)


@pytest.mark.parametrize("name", SCHEMES)
def test_words_in_figures(name):
    """Figures take the page's ink, some of it at an opacity."""
    ink, card = (scheme(name)[part] for part in ("ink", "card"))
    assert contrast(over(ink, float(style._OPACITY[style.MUTED]), card), card) >= 4.5


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("colour", [style.BLUE, style.ORANGE])
def test_numbers_in_heat_maps(name, colour):
    ink, card = (scheme(name)[part] for part in ("ink", "card"))
    for step in range(101):
        assert contrast(ink, over(colour, FULL * step / 100, card)) >= 4.5, step
    # The deepest cell must still differ from an empty one.
    assert contrast(over(colour, FULL, card), card) >= 2


@pytest.mark.parametrize("name", SCHEMES)
def test_lines_marks_and_bars(name):
    card = scheme(name)["card"]
    for colour in [*style.SERIES, *style.ROLE_COLOURS.values()]:
        assert contrast(colour, card) >= 3, colour
    for role, colour in style.ROLE_COLOURS.items():
        assert contrast("#ffffff", colour) >= 4.5, role


def test_pictures_on_white():
    for placeholder in (style.INK, style.MUTED):
        assert contrast(style._ON_WHITE[placeholder], "#ffffff") >= 4.5


def test_colour_never_stands_alone():
    assert len(style.SERIES) == len(set(style.MARKERS)) == len({str(dash) for dash in style.DASHES})
