"""Intrinsic dimension: time and memory beside scikit-dimension, and who is right near duplicates.

Run: python benchmarks/intrinsic_dimension.py [--rounds 5] [--sizes 2000,5000,10000]

Every round measures both once, in a new order; rows report medians, and the ratio is the median over rounds of
scikit-dimension's time divided by ours in the same round (above 1: ours is faster).  Peak memory is that of a process
of its own, above what the libraries and the points take (Linux only).
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch

import tailora

WIDTH = 768


def hidden_state_like(n: int, width: int = WIDTH, offset: float = 30.0, eps: float = 0.0, seed: int = 0) -> np.ndarray:
    """Return a 12-dimensional sheet in float32 with two outlying columns and, with ``eps``, 20 % near-duplicates."""
    generator = np.random.default_rng(seed)
    points = np.tanh(generator.normal(size=(n, 12)) @ generator.normal(size=(12, width)) / 3)
    points[:, 0] += offset
    points[:, 1] += 2 * offset
    pairs = n // 5
    if eps:
        step = generator.normal(size=(pairs, width))
        points[n - pairs :] = points[:pairs] + eps * step / np.linalg.norm(step, axis=1, keepdims=True)
    return points.astype(np.float32)


def ours(points: np.ndarray) -> float:
    """Return our TwoNN."""
    return tailora.intrinsic_dimension(points).value


def theirs(points: np.ndarray) -> float:
    """Return scikit-dimension's TwoNN."""
    import skdim

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(skdim.id.TwoNN().fit(points).dimension_)


WORK = {"tailora": ours, "scikit-dimension": theirs}


def times(n: int, rounds: int, order: random.Random) -> None:
    """Print one size."""
    points = hidden_state_like(n)
    values = {name: work(points) for name, work in WORK.items()}
    taken: dict[str, list[float]] = {name: [] for name in WORK}
    for _ in range(rounds):
        for name in order.sample(list(WORK), len(WORK)):
            start = time.perf_counter()
            WORK[name](points)
            taken[name].append(time.perf_counter() - start)
    ratio = statistics.median(b / a for a, b in zip(*(taken[name] for name in WORK), strict=True))
    for name, seconds in taken.items():
        peak = subprocess.run(
            [sys.executable, __file__, "--peak", name, "--sizes", str(n)], capture_output=True, text=True, check=True
        ).stdout.split()[-1]
        print(
            f"N={n:6d} D={WIDTH} {name:17s} {statistics.median(seconds) * 1e3:9.1f} ms   peak {float(peak):7.0f} MB"
            f"   d = {values[name]:.6f}"
        )
    print(f"N={n:6d} time of scikit-dimension / time of tailora = {ratio:.2f}")


def peak(name: str, n: int) -> None:
    """Print how far the peak of this process rises while one estimate runs, in MB."""
    points = hidden_state_like(n)
    WORK[name](points[:50])
    # The kernel's high-water mark; writing 5 sets it to what is held now.
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    WORK[name](points)
    print(high_water() - before)


def high_water() -> float:
    """Return the peak resident memory of this process in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def first_distances(points: torch.Tensor) -> dict[str, np.ndarray]:
    """Return everybody's nearest-neighbour distances."""
    from tailora.geometry.nearest import nearest

    def gram(cloud: torch.Tensor) -> np.ndarray:
        squares = (cloud * cloud).sum(1)
        made = (squares[:, None] + squares - 2 * cloud @ cloud.T).clamp_(min=0).sqrt_().fill_diagonal_(torch.inf)
        return made.min(dim=1).values.numpy()

    cdist = torch.cdist(points, points).fill_diagonal_(torch.inf).min(dim=1).values.numpy()
    return {
        "Gram float32": gram(points),
        "Gram float32, centred": gram(points - points.mean(0)),
        "torch.cdist float32": cdist,
        "tailora": nearest(points).distances[:, 0],
    }


def cancellation() -> None:
    """Print the share of nearest-neighbour distances that are wrong by more than 1 %, and the largest error of ours."""
    print("share of r1 wrong by more than 1 % (N=2000, D=384, float32, 20 % near-duplicates at distance eps)")
    for offset, eps in ((30, 0.0), (300, 0.0), (30, 0.1), (30, 0.01), (30, 0.001)):
        points = torch.from_numpy(hidden_state_like(2000, 384, offset, eps))
        wide = points.double()
        true = np.empty(len(wide))
        for row in range(len(wide)):
            distances = torch.linalg.vector_norm(wide - wide[row], dim=1)
            distances[row] = torch.inf
            true[row] = float(distances.min())
        found = first_distances(points)
        shares = "   ".join(f"{name} {np.mean(np.abs(r / true - 1) > 0.01):6.1%}" for name, r in found.items())
        worst = np.abs(found["tailora"] / true - 1).max()
        print(f"offset {offset:4d}, eps {eps:5g}:   {shares}   (largest relative error of tailora {worst:.1e})")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", default="2000,5000,10000")
    parser.add_argument("--peak", choices=list(WORK))
    given = parser.parse_args()
    sizes = [int(size) for size in given.sizes.split(",")]
    if given.peak:
        peak(given.peak, sizes[0])
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.rounds} rounds, medians")
    order = random.Random(0)
    for n in sizes:
        times(n, given.rounds, order)
    cancellation()


if __name__ == "__main__":
    main()
