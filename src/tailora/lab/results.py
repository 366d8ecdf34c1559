"""From records to one row per family and contestant."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

from tailora.lab.contestants import ORACLE, UNIFORM
from tailora.lab.score import Interval, gap_closed, matches, ratio_interval, student_interval
from tailora.report.formats import series

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """What a contestant did on one family, over its seeds.

    Attributes:
        family: The family.
        contestant: The contestant.
        seeds: Seeds it decided on.
        loss: Mean held-out loss, nats per position.
        gap: Mean over seeds of the share of the oracle's gap that was closed, Student's interval; NaN where the oracle
            gains nothing, as on ``everything``.
        ratio: The same as the ratio of the means, bootstrap interval over seeds.
        difference: Mean of ``(L - L_uniform) / L_uniform``, Student's interval; below 0 is better than uniform.
        gaps: The share per seed, in order of the seeds.
        lowest: The smallest of these.
        spearman: Mean rank correlation with the planted ranks.
        precision: Mean share of the targets above the mean rank that are planted.
        recall: Mean share of the planted targets above the mean rank.
        covered: Mean share of the planted ranks that the plan has.
        extra_compute: Mean passes spent on deciding, as a share of training's.
        params: Mean parameters.
    """

    family: str
    contestant: str
    seeds: tuple[int, ...]
    loss: float
    gap: Interval
    ratio: Interval
    difference: Interval
    gaps: tuple[float, ...]
    lowest: float
    spearman: float
    precision: float
    recall: float
    covered: float
    extra_compute: float
    params: float


def rows_of(records: Sequence[Record]) -> list[Row]:
    """Summarise records.

    Args:
        records: What ``run_lab`` returned.

    Returns:
        Rows by family in the order of the records, and within a family by the gap closed, the largest first; uniform
        LoRA and the oracle are rows too.
    """
    found: list[Row] = []
    for family in dict.fromkeys(record["spec"]["family"] for record in records):
        own = [record for record in records if record["spec"]["family"] == family]
        names = dict.fromkeys(name for record in own for name in record["contestants"])
        rows = [_row(family, name, [record for record in own if name in record["contestants"]]) for name in names]
        found += sorted(rows, key=lambda row: row.difference.mean)
    return found


def _row(family: str, name: str, records: Sequence[Record]) -> Row:
    losses = [tuple(record["contestants"][who]["loss"] for who in (UNIFORM, name, ORACLE)) for record in records]
    gaps = [gap_closed(*triple) for triple in losses]
    entries = [record["contestants"][name] for record in records]
    scores = [matches(record["planted"], entry["ranks"]) for record, entry in zip(records, entries, strict=True)]
    return Row(
        family=family,
        contestant=name,
        seeds=tuple(record["spec"]["seed"] for record in records),
        loss=fmean(own for _, own, _ in losses),
        gap=student_interval(gaps),
        ratio=ratio_interval([u - own for u, own, _ in losses], [u - best for u, _, best in losses]),
        difference=student_interval([(own - u) / u for u, own, _ in losses]),
        gaps=tuple(gaps),
        lowest=min(gaps),
        **{key: fmean(score[key] for score in scores) for key in ("spearman", "precision", "recall", "covered")},
        extra_compute=fmean(entry["extra_compute"] for entry in entries),
        params=fmean(entry["params"] for entry in entries),
    )


def left_out(records: Sequence[Record]) -> dict[str, tuple[int, str]]:
    """Return who could not decide: on how many problems, and the first reason."""
    found: dict[str, tuple[int, str]] = {}
    for record in records:
        for name, reason in record["left_out"].items():
            count, first = found.get(name, (0, reason))
            found[name] = (count + 1, first)
    return found


def at_the_edge(records: Sequence[Record]) -> list[str]:
    """Say where the grid of learning rates ended too soon.

    Args:
        records: What ``run_lab`` returned.

    Returns:
        One sentence for each family and end of the grid at which somebody's best rate lay on half of the problems or
        more; none where the grid has fewer than three rates, since then nobody was asked to search.
    """
    found = []
    for family in dict.fromkeys(record["spec"]["family"] for record in records):
        own = [record for record in records if record["spec"]["family"] == family]
        rates = sorted(own[0]["settings"]["rates"])
        for rate, end, word in ((rates[0], "lowest", "lower"), (rates[-1], "highest", "higher")):
            names = dict.fromkeys(name for record in own for name in record["contestants"])
            there = [name for name in names if _often(own, name, rate)]
            if there and len(rates) > 2:
                found.append(
                    f"{family}: the {end} learning rate, {rate:g}, was the best for {series(there)} on half of the "
                    f"problems or more; {word} ones may be better still, so add some with --rates"
                )
    return found


def _often(records: Sequence[Record], name: str, rate: float) -> bool:
    chosen = [record["contestants"][name]["rate"] for record in records if name in record["contestants"]]
    return 2 * sum(own == rate for own in chosen) >= len(chosen)


def as_json(row: Row) -> dict[str, Any]:
    """Return a row as a JSON-ready dict; what is no number is ``None``."""
    return {field.name: _plain(getattr(row, field.name)) for field in fields(row)}


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return {"mean": _plain(value.mean), "low": _plain(value.low), "high": _plain(value.high)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def rows_csv(rows: Sequence[Row]) -> str:
    """Write rows as CSV, full precision, one line each; what is no number is an empty field."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = [field.name for field in fields(Row)]
    wide = {"gap", "ratio", "difference"}
    head = [part for n in names for part in ((n, f"{n}_low", f"{n}_high") if n in wide else (n,))]
    writer.writerow(head)
    for row in rows:
        line: list[Any] = []
        for name in names:
            value = _plain(getattr(row, name))
            if isinstance(value, dict):
                line += value.values()
            elif isinstance(value, list):
                line.append(" ".join("" if item is None else str(item) for item in value))
            else:
                line.append(value)
        writer.writerow(["" if item is None else item for item in line])
    return stream.getvalue()
