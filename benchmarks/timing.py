"""What every benchmark measures with: rows shuffled in every round, and ratios within a round."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

Work = Callable[[], Any]


def compare(rows: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Time every row once per round in a new order; the first round only warms up."""
    taken: dict[str, list[float]] = {name: [] for name in rows}
    order = random.Random(0)
    for turn in range(rounds + 1):
        for name in order.sample(list(rows), len(rows)):
            start = time.perf_counter()
            rows[name]()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return taken


def show(taken: dict[str, list[float]], base: str) -> None:
    """Print medians of the ratios, and the ratio of the least times, on which a busy machine acts least."""
    for name, seconds in taken.items():
        ratio = statistics.median(s / f for s, f in zip(seconds, taken[base], strict=True))
        least = min(seconds) / min(taken[base])
        middle = statistics.median(seconds) * 1e3
        print(f"  {name:44s} {middle:9.0f} ms   ratio {ratio:6.2f}   of least times {least:6.2f}", flush=True)
