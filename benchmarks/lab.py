"""The laboratory's students trained together, against one peft model after the other.

usage: python benchmarks/lab.py [--students 12] [--steps 5] [--rounds 3]
"""

from __future__ import annotations

import argparse
import copy
import sys

from timing import compare, show

# This folder's profile.py would hide the standard library's, which torch imports.
sys.path.pop(0)
import torch
from peft import get_peft_model

from tailora.lab.families import FAMILIES
from tailora.lab.losses import lab_loss
from tailora.lab.problems import build
from tailora.lab.students import Stack, Student, train
from tailora.plans import plan


def main() -> None:
    """Print milliseconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--students", type=int, default=12)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    problem = build(FAMILIES["sparse"](0))
    made = [plan(list(problem.targets), "random-rank", "r=2", seed=seed) for seed in range(given.students)]
    batches = [batch for batch, _ in zip(problem.training(), range(given.steps), strict=False)]
    # Everything is built once, as in a laboratory; what is timed is training.
    stack = Stack(problem.base, problem.targets, [Student(one.ranks, 1e-3) for one in made])
    loners = [get_peft_model(copy.deepcopy(problem.base), one.lora_config()) for one in made]
    optimizers = [torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-3) for m in loners]

    def together() -> None:
        train([stack], batches, given.steps)

    def one_by_one() -> None:
        for model, optimizer in zip(loners, optimizers, strict=True):
            for batch in batches:
                lab_loss(model(input_ids=batch["input_ids"]), batch).mean().backward()
                optimizer.step()
                optimizer.zero_grad()

    print(f"{given.students} students, {given.steps} steps of {problem.step_tokens} tokens")
    show(compare({"one by one, peft": one_by_one, "together": together}, given.rounds), "one by one, peft")


if __name__ == "__main__":
    main()
