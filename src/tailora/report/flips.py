"""Examples that one recipe gets right and another wrong: what a difference in accuracy is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailora.report.groups import Group
from tailora.report.records import RunRecord

LIMIT = 30
"""Rows shown per pair of recipes."""

TEXT_LIMIT = 240
_ANSWER_LIMIT = 90
_ANSWERS = 3


@dataclass(frozen=True)
class Flip:
    """One example on which two recipes disagree.

    Attributes:
        index: The example's index in the data.
        label: The right answer.
        ours: What the recipe predicts, each answer with how many seeds gave it.
        theirs: The same for the baseline.
        gained: Seeds on which the recipe is right and the baseline wrong.
        lost: Seeds on which the baseline is right and the recipe wrong.
        text: The example itself where the run kept it.
    """

    index: str
    label: str
    ours: str
    theirs: str
    gained: tuple[int, ...]
    lost: tuple[int, ...]
    text: str = ""


@dataclass(frozen=True)
class Flips:
    """A recipe against its baseline, example by example.

    Attributes:
        recipe: The recipe.
        baseline: What it is compared with.
        seeds: The seeds that both ran.
        both_right: Examples and seeds that both got right, counted one by one.
        gained: The same for what only the recipe got right.
        lost: The same for what only the baseline got right.
        both_wrong: The same for what neither got right.
        total: How many examples flipped on at least one seed.
        rows: The clearest of them, most net seeds first.
    """

    recipe: str
    baseline: str
    seeds: tuple[int, ...]
    both_right: int
    gained: int
    lost: int
    both_wrong: int
    total: int
    rows: tuple[Flip, ...]

    @property
    def with_text(self) -> bool:
        """Whether any row has the example's text."""
        return any(row.text for row in self.rows)


def flipped(group: Group, limit: int = LIMIT) -> list[Flips]:
    """Compare every recipe but the baseline with it, and list the examples whose correctness differs on the same seed.

    Args:
        group: Runs of one task, model and budget.
        limit: Rows to keep per recipe.

    Returns:
        One entry per recipe whose predictions can be paired, without rows where none differs; nothing for tasks
        without right answers.
    """
    base = {run.seed: run for run in group.recipes[group.baseline]}
    found = []
    for name in group.ordered[1:]:
        pairs = [(run.seed, run, base[run.seed]) for run in group.recipes[name] if run.seed in base]
        entry = _compare(name, group.baseline, pairs, limit)
        if entry is not None:
            found.append(entry)
    return found


def _compare(name: str, baseline: str, pairs: Sequence[tuple[int, RunRecord, RunRecord]], limit: int) -> Flips | None:
    """Compare seed by seed; ``None`` where nothing can be paired."""
    gained: dict[str, list[int]] = {}
    lost: dict[str, list[int]] = {}
    agreed = {True: 0, False: 0}
    tables = [(seed, _by_index(ours), _by_index(theirs)) for seed, ours, theirs in pairs]
    for seed, ours, theirs in tables:
        for index in ours.keys() & theirs.keys():
            mine, other = ours[index], theirs[index]
            if mine.get("label") != other.get("label"):
                continue
            if mine["correct"] == other["correct"]:
                agreed[mine["correct"]] += 1
            else:
                (gained if mine["correct"] else lost).setdefault(index, []).append(seed)
    every = gained.keys() | lost.keys()
    if not every and not any(agreed.values()):
        return None

    def clearest(index: str) -> tuple[int, tuple[int, str]]:
        net = abs(len(gained.get(index, ())) - len(lost.get(index, ())))
        return -net, (int(index), "") if index.isdecimal() else (0, index)

    rows = [_row(index, tables, gained, lost) for index in sorted(every, key=clearest)[:limit]]
    return Flips(
        recipe=name,
        baseline=baseline,
        seeds=tuple(seed for seed, _, _ in tables),
        both_right=agreed[True],
        gained=sum(map(len, gained.values())),
        lost=sum(map(len, lost.values())),
        both_wrong=agreed[False],
        total=len(every),
        rows=tuple(rows),
    )


def _by_index(run: RunRecord) -> dict[str, Mapping[str, Any]]:
    """Map index to prediction; an index that is listed twice cannot be paired and is left out."""
    table: dict[str, Mapping[str, Any]] = {}
    twice: set[str] = set()
    for row in run.predictions:
        if "index" in row and isinstance(row.get("correct"), bool):
            index = str(row["index"])
            twice |= {index} if index in table else set()
            table[index] = row
    return {index: row for index, row in table.items() if index not in twice}


def _row(index: str, tables: Sequence[Any], gained: Mapping[str, list[int]], lost: Mapping[str, list[int]]) -> Flip:
    ours = [mine[index] for _, mine, other in tables if index in mine and index in other]
    theirs = [other[index] for _, mine, other in tables if index in mine and index in other]
    return Flip(
        index=index,
        label=_clipped(ours[0].get("label", ""), _ANSWER_LIMIT),
        ours=_answers(ours),
        theirs=_answers(theirs),
        gained=tuple(gained.get(index, ())),
        lost=tuple(lost.get(index, ())),
        text=_clipped(ours[0].get("text") or "", TEXT_LIMIT),
    )


def _clipped(value: Any, limit: int) -> str:
    """Write a value on one line; generated answers may be pages long."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _answers(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write ``3`` where all seeds agree, else ``3 (2 seeds), 1 (1 seed)``, most frequent first."""
    counts: dict[str, int] = {}
    for row in rows:
        told = _clipped(row.get("prediction", ""), _ANSWER_LIMIT)
        counts[told] = counts.get(told, 0) + 1
    if len(counts) == 1:
        return next(iter(counts))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{told} ({number} seed{'s' if number > 1 else ''})" for told, number in ranked[:_ANSWERS]]
    return ", ".join([*shown, f"{len(ranked) - _ANSWERS} more"] if len(ranked) > _ANSWERS else shown)
