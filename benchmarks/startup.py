"""Start-up of the command line: whole processes, best and median, ratio to an empty Python.

Run: python benchmarks/startup.py [--rounds 9] [--profile DIR]

DIR is a saved profile, such as ``tailora profile MODEL --data D -o DIR`` makes; with it, planning is measured too.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time


def seconds(command: list[str]) -> float:
    """Return the seconds of one process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", help="Folder of a saved profile, to plan from.")
    given = parser.parse_args()
    rounds = given.rounds
    tailora = [sys.executable, "-m", "tailora"]
    rows = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "tailora --help": [*tailora, "--help"],
        "tailora plan --help": [*tailora, "plan", "--help"],
        "tailora recipes": [*tailora, "recipes"],
    }
    if given.profile:
        words = ["plan", "--profile", given.profile, "--recipe", "spectral", "--budget", "r=8"]
        rows["tailora plan --profile"] = [*tailora, *words]
    for command in rows.values():
        seconds(command)
    taken: dict[str, list[float]] = {name: [] for name in rows}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(rows), len(rows)):
            taken[name].append(seconds(rows[name]))
    floor = taken["python -c pass"]
    for name, values in taken.items():
        ratio = statistics.median(v / f for v, f in zip(values, floor, strict=True))
        best, median = min(values) * 1e3, statistics.median(values) * 1e3
        print(f"{name:24s} best {best:6.0f} ms   median {median:6.0f} ms   ratio to an empty Python {ratio:6.2f}")


if __name__ == "__main__":
    main()
