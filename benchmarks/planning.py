"""Planning for a 405B-sized model: milliseconds per plan, and the ratio to the plain-Python twin.

Run: python benchmarks/planning.py [--rounds 15]

Every round measures every row once, in a new order; rows report the median, and the ratio is the median over rounds of
one row divided by the twin of the same round.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import tailora
from reference.allocate_slow import allocate_slow
from tailora.allocation import ALLOCATORS, Problem, unit_costs
from tailora.profiles import Profile
from tailora.targets import Target

HIDDEN, INTERMEDIATE, KEY_VALUE, LAYERS = 16384, 53248, 1024, 126
MODEL_PARAMS = 405_853_388_800


def llama_405b_targets() -> list[Target]:
    """Return the shapes of Llama-3.1-405B: 126 layers of 7 matrices."""
    shapes = {
        "self_attn.q_proj": ("attention.query", (HIDDEN, HIDDEN)),
        "self_attn.k_proj": ("attention.key", (KEY_VALUE, HIDDEN)),
        "self_attn.v_proj": ("attention.value", (KEY_VALUE, HIDDEN)),
        "self_attn.o_proj": ("attention.output", (HIDDEN, HIDDEN)),
        "mlp.gate_proj": ("ffn.gate", (INTERMEDIATE, HIDDEN)),
        "mlp.up_proj": ("ffn.up", (INTERMEDIATE, HIDDEN)),
        "mlp.down_proj": ("ffn.down", (HIDDEN, INTERMEDIATE)),
    }
    return [
        Target(f"model.layers.{layer}.{name}", role, layer, shape)
        for layer in range(LAYERS)
        for name, (role, shape) in shapes.items()
    ]


def synthetic_profile(targets: list[Target], seed: int = 0) -> Profile:
    """Return a profile with power-law spectra of random size and decay, as calibration gradients have."""
    rng = np.random.default_rng(seed)
    size = rng.lognormal(sigma=1.5, size=(len(targets), 1))
    decay = rng.uniform(0.3, 1.2, size=(len(targets), 1))
    spectrum = size * np.arange(1, 257)[None, :] ** -decay
    fisher = (spectrum**2).sum(axis=1) * rng.lognormal(size=len(targets))
    return Profile(tuple(targets), {"fisher": fisher, "gradient_spectrum": spectrum}, {"model_params": MODEL_PARAMS})


def timed(work) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    targets = llama_405b_targets()
    profile = synthetic_profile(targets)
    costs = unit_costs(targets, 64)
    problem = Problem(tuple(targets), costs, profile.signals, sum(t.cost(16) for t in targets))
    gains = ALLOCATORS["spectral"].gains(problem)
    gain_lists, cost_lists = gains.tolist(), costs.tolist()
    # Two per cent of the budget are enough to time the twin: it looks at every target for every rank it deals.
    small = problem.budget_params // 50
    plans = {recipe: tailora.plan(profile, recipe, "r=16") for recipe in ("lora", "fim-lora", "spectral")}
    rows = {f"plan {recipe}, r=16": (lambda r: lambda: tailora.plan(profile, r, "r=16"))(recipe) for recipe in plans}
    rows["allocate alone, 2 % of the budget"] = lambda: tailora.allocation.allocate(gains, costs, small)
    rows["plain-Python twin, 2 % of the budget"] = lambda: allocate_slow(gain_lists, cost_lists, small)
    assert tailora.allocation.allocate(gains, costs, small).tolist() == allocate_slow(gain_lists, cost_lists, small)
    taken: dict[str, list[float]] = {name: [] for name in rows}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(rows), len(rows)):
            taken[name].append(timed(rows[name]))
    print(f"{len(targets)} targets, {rounds} rounds, medians")
    twin = taken["plain-Python twin, 2 % of the budget"]
    for name, seconds in taken.items():
        ratio = statistics.median(s / t for s, t in zip(seconds, twin, strict=True))
        print(f"{name:40s} {statistics.median(seconds) * 1e3:9.1f} ms   ratio to the twin {ratio:8.4f}")
    for recipe, made in plans.items():
        largest = max(made.ranks.values())
        print(f"{recipe:10s} {made.total_params:,} of {made.budget_params:,} parameters, ranks to {largest}")


if __name__ == "__main__":
    main()
