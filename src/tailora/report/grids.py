"""Plans as grids of layers by roles: the one layout that the terminal and the figures share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tailora.report.records import finite

# The first word of a role is its column's heading; order and short names are what a reader expects, left to right.
_HEADINGS = {"attention": "attention", "cross": "cross-attention", "ffn": "feed-forward", "": "other"}
_BRIEF = {"attention": "attn."}
_ORDER = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.qkv",
    "attention.output",
    "cross.query",
    "cross.key",
    "cross.value",
    "cross.qkv",
    "cross.output",
    "ffn.gate",
    "ffn.up",
    "ffn.down",
    "embedding",
    "head",
    "other",
)
_CROSS = re.compile(r"encdecattention|crossattention|cross_attn|encoder_attn", re.IGNORECASE)


@dataclass(frozen=True)
class Column:
    """One role.

    Attributes:
        key: ``attention.query``, ``cross.query``, ``ffn.up``, ``embedding``, ...
    """

    key: str

    @property
    def heading(self) -> str:
        """What the role belongs to: ``attention``, ``cross-attention``, ``feed-forward`` or ``other``."""
        return _HEADINGS.get(self.key.partition(".")[0], "other")

    @property
    def label(self) -> str:
        """Short name below the heading."""
        return {"embedding": "embed"}.get(self.key, self.key.rpartition(".")[2])

    @property
    def place(self) -> tuple[int, str]:
        """Sort key of the display order, left to right."""
        return (_ORDER.index(self.key) if self.key in _ORDER else len(_ORDER), self.key)

    @property
    def title(self) -> str:
        """Full name, for legends and tooltips."""
        if "." not in self.key:
            return self.key
        return f"{self.heading} {self.label}"

    @property
    def brief(self) -> str:
        """Name for a legend without room for the full one: ``attn. query``, ``cross query``, ``ffn up``."""
        kind = self.key.partition(".")[0]
        return f"{_BRIEF.get(kind, kind)} {self.label}" if "." in self.key else self.title


@dataclass(frozen=True)
class Row:
    """One layer of one stack, or what lies outside the blocks (depth ``None``)."""

    stack: str
    depth: int | None

    @property
    def label(self) -> str:
        """Short name within the stack."""
        return "outside" if self.depth is None else str(self.depth)

    @property
    def title(self) -> str:
        """Full name, for tooltips."""
        place = "outside the blocks" if self.depth is None else f"layer {self.depth}"
        return f"{self.stack} {place}".strip()


@dataclass(frozen=True)
class Line:
    """One line of a grid as it is shown.

    Attributes:
        row: The row that it belongs to.
        label: The layer's number, or the role of what lies outside the blocks.
        places: Shown column to the place of its value in ``Grid.cells``.
    """

    row: Row
    label: str
    places: dict[Column, tuple[Row, Column]]


@dataclass(frozen=True)
class Grid:
    """Numbers by layer and role; several targets in one place are added up or averaged.

    Attributes:
        columns: Roles that occur.
        rows: Layers that occur, stack by stack, what lies outside the blocks last.
        cells: Value per place; a place without any candidate target is missing.
        crowded: Whether some place holds more than one target.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    cells: dict[tuple[Row, Column], float] = field(default_factory=dict)
    crowded: bool = False

    @property
    def stacks(self) -> tuple[str, ...]:
        """Stacks in the order in which they appear."""
        return tuple(dict.fromkeys(row.stack for row in self.rows))

    @property
    def shown(self) -> tuple[Column, ...]:
        """Columns that some layer fills; an embedding has a line of its own instead of an empty column."""
        inside = {column for row, column in self.cells if row.depth is not None}
        return tuple(column for column in self.columns if column in inside) or self.columns

    @property
    def lines(self) -> list[Line]:
        """The lines in display order; a role that only occurs outside the blocks stands in the first column."""
        found, columns = [], self.shown
        for row in self.rows:
            own = [column for column in self.columns if (row, column) in self.cells]
            if shared := {column: (row, column) for column in own if column in columns}:
                found.append(Line(row, row.label, shared))
            found += [Line(row, column.label, {columns[0]: (row, column)}) for column in own if column not in columns]
        return found

    @property
    def largest(self) -> float:
        """The largest value, 0 for an empty grid."""
        return max(self.cells.values(), default=0.0)


def role_of(target: Mapping[str, Any]) -> Column:
    """Return the column of a target; attention over another tower's states has columns of its own."""
    role = str(target.get("role") or "other")
    kind, _, part = role.partition(".")
    crosses = target.get("cross_attention")
    if crosses is None:
        crosses = bool(_CROSS.search(str(target.get("name", ""))))
    return Column(f"cross.{part}") if kind == "attention" and crosses else Column(role)


def row_of(target: Mapping[str, Any]) -> Row:
    """Return the row of a target."""
    depth = finite(target.get("depth"))
    return Row(str(target.get("stack") or ""), None if depth is None else int(depth))


def cost_of(target: Mapping[str, Any]) -> int:
    """Return the adapter parameters that a planned target costs, computed for plans that do not list it."""
    cost, rank = finite(target.get("cost")), finite(target.get("rank")) or 0
    if rank == 0:
        return 0
    if cost is None:
        sides = [finite(side) or 0 for side in target.get("shape") or ()]
        cost = rank * sum(sides) * (finite(target.get("experts")) or 1)
    return int(cost)


def build_grid(targets: Iterable[Mapping[str, Any]], values: Mapping[str, float], *, average: bool = False) -> Grid:
    """Lay out one number per target.

    Args:
        targets: Targets of a plan or a profile.
        values: Number per target name; targets without one are left out.
        average: Whether several targets in one place show their mean instead of their sum.

    Returns:
        The grid.
    """
    cells: dict[tuple[Row, Column], float] = {}
    counts: dict[tuple[Row, Column], int] = {}
    stacks: dict[str, None] = {}
    for target in targets:
        name = str(target["name"])
        if name not in values:
            continue
        place = (row_of(target), role_of(target))
        counts[place] = counts.get(place, 0) + 1
        cells[place] = cells.get(place, 0.0) + values[name]
        stacks.setdefault(place[0].stack)
    if average:
        cells = {place: value / counts[place] for place, value in cells.items()}
    order = {stack: number for number, stack in enumerate(stacks)}
    rows = sorted({row for row, _ in cells}, key=lambda row: (order[row.stack], row.depth is None, row.depth or 0))
    columns = sorted({column for _, column in cells}, key=lambda column: column.place)
    return Grid(tuple(columns), tuple(rows), cells, max(counts.values(), default=1) > 1)


def rank_grid(plan: Mapping[str, Any]) -> Grid:
    """Lay out the ranks of a plan; rank 0 is a candidate that is not adapted."""
    return build_grid(plan["targets"], {str(target["name"]): float(target["rank"]) for target in plan["targets"]})


def cost_by(plan: Mapping[str, Any], what: str) -> dict[Any, int]:
    """Add up the parameters spent.

    Args:
        plan: A plan.
        what: ``role`` or ``depth``.

    Returns:
        Column (or row) to parameters, in display order, those with nothing spent included.
    """
    grid = build_grid(plan["targets"], {str(target["name"]): float(cost_of(target)) for target in plan["targets"]})
    side = 1 if what == "role" else 0
    return {
        key: round(sum(value for place, value in grid.cells.items() if place[side] == key))
        for key in (grid.columns if side else grid.rows)
    }
