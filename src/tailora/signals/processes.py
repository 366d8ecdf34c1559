"""Adding up what several processes measured, each on its share of the batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tailora.signals.base import Statistics

if TYPE_CHECKING:
    from tailora.signals.passes import Pass


def add_over_processes(run: Pass, statistics: Statistics) -> None:
    """Give every process the sums over all of them; do nothing where there is one process.

    All processes must have taken the same signals of the same targets; how many batches each took does not matter.

    Args:
        run: This process's pass; its counts are replaced by those of all processes.
        statistics: This process's statistics; replaced likewise.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return
    for statistic in statistics.values():
        # NCCL adds on its GPU only, gloo on the host; the sums are small, so they travel by way of the default device.
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        state = {}
        for name, tensor in statistic.state().items():
            moved = tensor.detach().to(device).clone()
            distributed.all_reduce(moved)
            state[name] = moved.cpu()
        statistic.load(state)
    if run.states is not None:
        rows: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(rows, run.states.own_rows())
        run.states.gathered(rows)
    mine = (run.examples, run.batches, run.loss_sum, run.loss_name, run.one_by_one, run.skipped, sorted(run.reached))
    everyone: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, mine)
    run.examples, run.batches = sum(one[0] for one in everyone), sum(one[1] for one in everyone)
    run.loss_sum = float(torch.tensor([one[2] for one in everyone], dtype=torch.float64).sum())
    run.loss_name = next((one[3] for one in everyone if one[3]), "")
    run.one_by_one = next((one[4] for one in everyone if one[4]), "")
    run.skipped = [f"{text} in process {rank}" for rank, one in enumerate(everyone) for text in one[5]]
    run.reached = {index for one in everyone for index in one[6]}
