"""The intrinsic dimension of a profile: both ends of every block, its noise, and the ranks that GeLoRA makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tailora.allocation.gelora_noise import BlockReport, gelora_report
from tailora.errors import UserError
from tailora.report import formats
from tailora.targets import Target

Point = tuple[int, float, float, float]
"""Blocks passed so far, the dimension there, and the ends of its 95 % interval."""


@dataclass(frozen=True)
class DimensionView:
    """The signal ``intrinsic_dimension`` made ready to be shown.

    Attributes:
        ends: Target name to the dimension of its block's input and output; targets outside of blocks are left out.
        blocks: What is known of every block that has a dimension at both ends, in the targets' order.
        notes: Sentences on noise and on what is missing.
        replicates: How many replicates the intervals rest on.
    """

    ends: dict[str, tuple[float, float]]
    blocks: tuple[BlockReport, ...]
    notes: tuple[str, ...]
    replicates: int

    @staticmethod
    def fits(name: str, values: np.ndarray) -> bool:
        """Tell whether an array is the signal as it is measured: ``[n_targets, 2, 1 + replicates]``."""
        return name == "intrinsic_dimension" and values.ndim == 3 and values.shape[1] == 2

    @classmethod
    def of(cls, targets: Sequence[Target], signal: np.ndarray) -> DimensionView:
        """Read the signal.

        Args:
            targets: The profile's targets.
            signal: float64 ``[n_targets, 2, 1 + replicates]``, NaN outside of blocks.

        Returns:
            The view.
        """
        pairs = [(float(before), float(after)) for before, after in signal[:, :, 0]]
        ends = {target.name: pair for target, pair in zip(targets, pairs, strict=True) if any(map(math.isfinite, pair))}
        whole = [all(map(math.isfinite, pair)) for pair in pairs]
        inside = [target.depth is not None for target in targets]
        notes: list[str] = []
        if any(block and not known for block, known in zip(inside, whole, strict=True)):
            try:
                gelora_report(targets, signal)
            except UserError as error:
                notes.append(str(error))
        chosen = [index for index in range(len(targets)) if inside[index] and whole[index]]
        report = gelora_report([targets[index] for index in chosen], signal[chosen])
        notes += [sentence for sentence in (report.warning, report.scale_warning) if sentence]
        return cls(ends, report.blocks, tuple(map(_sentence, notes)), signal.shape[2] - 1)

    def ends_of(self, name: str) -> list[float | str]:
        """Return the dimension of the input and the output of a target's block, an empty text where there is none."""
        return ["" if math.isnan(value) else value for value in self.ends.get(name, (math.nan, math.nan))]

    @property
    def stacks(self) -> dict[str, list[Point]]:
        """Return the points of every stack in the order in which a hidden state passes them."""
        found: dict[str, list[Point]] = {}
        for block in sorted(self.blocks, key=lambda block: block.depth):
            points = found.setdefault(block.stack, [])
            before = (block.depth, block.before, *block.before_interval)
            # What a block puts out the next one mostly takes in as it is; where it does not, both are points.
            if not points or points[-1] != before:
                points.append(before)
            points.append((block.depth + 1, block.after, *block.after_interval))
        order = list(dict.fromkeys(block.stack for block in self.blocks))
        return {stack: found[stack] for stack in order}

    @property
    def row(self) -> dict[str, str]:
        """The smallest and the largest dimension, as a line of the page's first table."""
        points = [(value, stack, passed) for stack, held in self.stacks.items() for passed, value, *_ in held]
        low, high = min(points, default=None), max(points, default=None)
        return {
            "signal": "intrinsic dimension",
            "numbers": "input and output of each block",
            "smallest": formats.number(low[0]) if low else formats.DASH,
            "largest": formats.number(high[0]) if high else formats.DASH,
            "at": boundary(*high[1:]) if high else formats.DASH,
        }

    def as_json(self) -> dict[str, Any]:
        """Return the numbers behind the figure and the table.

        Returns:
            ``blocks`` (one a block: dimensions of its input and output, 95 % intervals, GeLoRA's rank, whether that is
            within noise), ``replicates`` (0: every interval is ``None``) and ``notes``.
        """
        blocks = [
            {
                "stack": block.stack,
                "depth": block.depth,
                "before": block.before,
                "after": block.after,
                "before_interval": _known(block.before_interval),
                "after_interval": _known(block.after_interval),
                "rise_interval": _known(block.rise_interval),
                "rank": block.rank,
                "within_noise": block.within_noise,
            }
            for block in self.blocks
        ]
        return {"blocks": blocks, "replicates": self.replicates, "notes": list(self.notes)}

    def table(self) -> list[dict[str, str]]:
        """Return one line of texts per block.

        Returns:
            ``block``, ``before``, ``after``, ``rise`` and the three intervals, ``rank`` and ``verdict``.
        """
        return [
            {
                "block": f"{block.stack} {block.depth}".strip(),
                "before": _two(block.before),
                "before_interval": _range(block.before_interval),
                "after": _two(block.after),
                "after_interval": _range(block.after_interval),
                "rise": _two(block.after - block.before, "+"),
                "rise_interval": _range(block.rise_interval, "+"),
                "rank": str(block.rank),
                "verdict": "within noise" if block.within_noise else "above noise" if block.rank > 1 else formats.DASH,
            }
            for block in self.blocks
        ]


def boundary(stack: str, passed: int) -> str:
    """Name the place in front of the first block or behind a later one."""
    return f"{stack} {'before block 0' if passed == 0 else f'after block {passed - 1}'}".strip()


def _two(value: float, sign: str = "") -> str:
    return f"{value:{sign}.2f}".replace("-", formats.MINUS)


def _range(interval: tuple[float, float], sign: str = "") -> str:
    if not all(map(math.isfinite, interval)):
        return "unknown"
    return " to ".join(_two(end, sign) for end in interval)


def _known(interval: tuple[float, float]) -> list[float] | None:
    return list(interval) if all(map(math.isfinite, interval)) else None


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
