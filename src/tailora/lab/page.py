"""The laboratory's results as one HTML page, with the same numbers as JSON and CSV beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tailora.artifacts import write_json, write_text
from tailora.lab.contestants import ORACLE, UNIFORM
from tailora.lab.families import FAMILIES
from tailora.lab.figures import gap_figure
from tailora.lab.results import Record, Row, as_json, at_the_edge, left_out, rows_csv, rows_of
from tailora.lab.score import Interval
from tailora.report import formats
from tailora.report.heatmaps import rank_heat_map
from tailora.report.pages import card, column_width, render_page

_SHOWN = 4


def write_results(records: Sequence[Record], folder: str | Path) -> tuple[Path, list[Row]]:
    """Write ``lab.html``, ``lab.json`` and ``lab.csv``.

    Args:
        records: What ``run_lab`` returned.
        folder: Where to.

    Returns:
        The path of the page, and the rows on it.
    """
    folder = Path(folder)
    rows = rows_of(records)
    write_text(folder / "lab.csv", rows_csv(rows))
    write_json(folder / "lab.json", results_json(records, rows))
    # The page last: whoever waits for it finds the others complete.
    return write_text(folder / "lab.html", render(records, rows)), rows


def results_json(records: Sequence[Record], rows: Sequence[Row]) -> dict[str, Any]:
    """Return the JSON-ready summary of a lab run."""
    return {
        "settings": records[0]["settings"],
        "problems": len(records),
        "rows": [as_json(row) for row in rows],
        "left_out": {name: {"problems": count, "reason": why} for name, (count, why) in left_out(records).items()},
        "warnings": at_the_edge(records),
    }


def render(records: Sequence[Record], rows: Sequence[Row]) -> str:
    """Render the page.

    Args:
        records: At least one.
        rows: Their summary.

    Returns:
        The whole HTML document.
    """
    families = list(dict.fromkeys(row.family for row in rows))
    settings = records[0]["settings"]
    rates = ", ".join(f"{rate:g}" for rate in settings["rates"])
    summary = (
        f"{formats.plural(len(records), 'planted problem')} of {series_words(families)}; every contestant spends at "
        f"most {settings['budget']} and trains {settings['steps']} steps at each of the learning rates {rates}, of "
        "which the best on validation sequences counts."
    )
    return render_page(
        "lab.html.j2",
        title="The planted-rank laboratory",
        summary=summary,
        overview=overview(rows, families),
        families=[_family(name, number, records, rows) for number, name in enumerate(families)],
        left_out=[(name, count, why) for name, (count, why) in left_out(records).items()],
        problems=[_problem(record) for record in records],
        warnings=at_the_edge(records),
    )


def series_words(words: list[str]) -> str:
    """Join words with commas and a final ``and``."""
    return formats.series(words)


def overview(rows: Sequence[Row], families: Sequence[str]) -> dict[str, Any]:
    """Return the table of contestants by families, the best mean over families first.

    Args:
        rows: All rows.
        families: The columns.

    Returns:
        ``families`` and ``rows``: contestant, cells with text and whether it is the best of its column but the oracle,
        the mean.
    """
    found = {(row.family, row.contestant): row for row in rows}
    scored = [f for f in families if any(math.isfinite(row.gap.mean) for row in rows if row.family == f)]
    names = list(dict.fromkeys(row.contestant for row in rows))
    best = {
        family: max(
            (row.gap.mean for row in rows if row.family == family and row.contestant not in (ORACLE, UNIFORM)),
            default=math.nan,
        )
        for family in scored
    }
    lines = []
    for name in names:
        own = [found.get((family, name)) for family in scored]
        values = [row.gap.mean for row in own if row is not None]
        cells = [
            {"text": formats.DASH, "best": False}
            if row is None
            else {"text": interval_words(row.gap), "best": name != UNIFORM and row.gap.mean == best[row.family]}
            for row in own
        ]
        mean = sum(values) / len(values) if values and len(values) == len(scored) else math.nan
        lines.append({"name": name, "cells": cells, "mean": number(mean), "order": mean})
    lines.sort(key=lambda line: -line["order"] if math.isfinite(line["order"]) else math.inf)
    return {"families": scored, "rows": lines}


def interval_words(interval: Interval) -> str:
    """Write ``0.42 (0.31 to 0.53)``."""
    if not math.isfinite(interval.mean):
        return formats.DASH
    if not math.isfinite(interval.low):
        return number(interval.mean)
    return f"{number(interval.mean)} ({number(interval.low)} to {number(interval.high)})"


def number(value: float) -> str:
    """Write a share to two decimals, a dash where it is no number."""
    if not math.isfinite(value):
        return formats.DASH
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", formats.MINUS)


def percent(value: float) -> str:
    """Write a share of 1 in percent."""
    return formats.DASH if not math.isfinite(value) else f"{100 * value:.1f} %".replace("-", formats.MINUS)


def _family(name: str, place: int, records: Sequence[Record], rows: Sequence[Row]) -> dict[str, Any]:
    """Return a family's table, figure and heat maps."""
    own = [row for row in rows if row.family == name]
    first = next(record for record in records if record["spec"]["family"] == name)
    drawn = gap_figure(own, name=f"gap-{place}")
    figure = (
        card("Oracle gap closed", "A mark is a seed, the bar Student's 95 % interval of their mean.", drawn)
        if drawn
        else None
    )
    return {
        "name": name,
        "summary": FAMILIES.entry(name).summary if name in FAMILIES else "",
        "rows": [
            {
                "contestant": row.contestant,
                "loss": formats.score(row.loss),
                "gap": interval_words(row.gap),
                "ratio": interval_words(row.ratio),
                "lowest": number(row.lowest),
                "difference": percent(row.difference.mean)
                + (
                    f" ({percent(row.difference.low)} to {percent(row.difference.high)})"
                    if math.isfinite(row.difference.low)
                    else ""
                ),
                "spearman": number(row.spearman),
                "precision": number(row.precision),
                "recall": number(row.recall),
                "covered": number(row.covered),
                "extra": percent(row.extra_compute),
                "params": formats.count(row.params),
                "seeds": len(row.seeds),
            }
            for row in own
        ],
        "figure": figure,
        "seed": first["spec"]["seed"],
        **_maps(first, own, place),
    }


def _maps(record: Record, rows: Sequence[Row], place: int) -> dict[str, Any]:
    """Draw the planted ranks beside the plans of the best contestants on one scale."""
    others = [row.contestant for row in rows if row.contestant not in (ORACLE, UNIFORM)]
    wanted = [ORACLE, *[name for name in others if name in record["contestants"]][:_SHOWN], UNIFORM]
    plans = {"planted": record["planted"]} | {name: record["contestants"][name]["ranks"] for name in wanted}
    largest = float(max(max(ranks.values()) for ranks in plans.values()))
    cards = []
    for number_of, (name, ranks) in enumerate(plans.items()):
        plan = {"targets": [{**target, "rank": ranks.get(target["name"], 0)} for target in record["targets"]]}
        svg = rank_heat_map(plan, name=f"map-{place}-{number_of}", label=name, largest=largest)
        cards.append(card(name, _map_words(name, record), svg))
    return {"maps": cards, "width": column_width(cards)}


def _map_words(name: str, record: Record) -> str:
    """Say what a heat map shows."""
    if name == "planted":
        return "Ranks of the updates that the teacher has."
    entry: Mapping[str, Any] = record["contestants"][name]
    return f"{formats.count(entry['params'])} parameters, held-out loss {formats.score(entry['loss'])}."


def _problem(record: Record) -> dict[str, Any]:
    """Return a problem's line in the table of problems."""
    entries = record["contestants"]
    best = min(
        (name for name in entries if name not in (ORACLE, UNIFORM)), key=lambda n: entries[n]["loss"], default=""
    )
    return {
        "family": record["spec"]["family"],
        "seed": record["spec"]["seed"],
        "planted": sum(rank > 0 for rank in record["planted"].values()),
        "targets": len(record["targets"]),
        "untrained": formats.score(record["untrained"]),
        "uniform": formats.score(entries[UNIFORM]["loss"]),
        "oracle": formats.score(entries[ORACLE]["loss"]),
        "best": best or formats.DASH,
        "loss": formats.score(entries[best]["loss"]) if best else formats.DASH,
        "seconds": formats.seconds(record["seconds"]["decide"] + record["seconds"]["train"]),
    }
