"""What a page shows of a study: learning rates, calibration sizes, agreement by example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tailora.report.content import Content
from tailora.report.markdown import rate_rows, rates_explained, size_rows
from tailora.report.pages import card
from tailora.report.rate_figures import plan_against_size, score_against_rate, score_against_size

_RING = "The ring is the rate of the final runs."
_SIZES_HOW = "A mark is the mean over seeds, its bar the 95 % interval; bars that dwarf the differences are cut off."
_MOVED_HOW = "How much of the plan with the most examples is missing from the plan with fewer."


def rate_sections(content: Content, order: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the page shows of score against learning rate.

    Args:
        content: What the report shows.
        order: Every recipe of the page.

    Returns:
        Per task, model and budget: its label, figure, table and whether the runs were a search.
    """
    found = []
    for number, family in enumerate(content.rates):
        svg = score_against_rate(family, name=f"rates-{number}", order=order)
        how = _RING if family.searched else "The ring is the rate that the tables show."
        title = family.group.label if family.searched else f"{family.group.label}: final runs"
        found.append(
            {
                "label": family.group.label,
                "group": family.group,
                "searched": family.searched,
                "explained": rates_explained(family),
                "primary": family.primary,
                "figure": card(title, how, svg),
                "rows": [
                    {"cells": row, "edge": family.searched and bool(curve.edge)}
                    for row, curve in zip(rate_rows(family, content.cost), family.curves, strict=True)
                ],
            }
        )
    return found


def size_sections(content: Content, order: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the page shows of score against calibration size.

    Args:
        content: What the report shows.
        order: Every recipe of the page.

    Returns:
        Per task, model and budget: its group, figures, table and notes.
    """
    found = []
    for number, (group, curves) in enumerate(content.sizes):
        drawn = [
            ("Score by calibration size", _SIZES_HOW, score_against_size(curves, name=f"sizes-{number}", order=order)),
            ("Plan by calibration size", _MOVED_HOW, plan_against_size(curves, name=f"moved-{number}", order=order)),
        ]
        found.append(
            {
                "group": group,
                "primary": curves[0].primary,
                "figures": [card(title, how, svg) for title, how, svg in drawn if svg],
                "rows": size_rows(curves),
                "notes": [note for curve in curves for note in curve.notes],
            }
        )
    return found
