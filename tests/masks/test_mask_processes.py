"""Two processes that train together give what one gives."""

from __future__ import annotations

import functools
import os

import pytest
import torch
from mask_cases import adapted, frozen_everywhere, mask_of, train, values
from torch.nn.parallel import DistributedDataParallel

import models
from forked import free_port, start_two


def rows(rank=None):
    """Return batches of four examples, or one process's two of each."""
    made = [models.batches("bert", sizes=(4,), seed=seed)[0] for seed in (1, 2, 3, 4)]
    if rank is None:
        return made
    return [{key: value[2 * rank : 2 * rank + 2] for key, value in batch.items()} for batch in made]


def work(rank, port, out):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for view in (False, True):
        torch.save(trained(rank, view), f"{out}/{rank}-{view}.pt")
    torch.distributed.destroy_process_group()


def trained(rank, view):
    """Train this process's rows; return the values, the norms and which mask it was."""
    model = adapted("bert")
    mask = mask_of(model, "bert")
    optimizer = mask.optimizer(torch.optim.AdamW, lr=3e-3, weight_decay=0.1)
    # Small buckets, so that there are several.
    wrapped = DistributedDataParallel(model, bucket_cap_mb=0.002, gradient_as_bucket_view=view)
    norms = []
    for step in range(3):
        with wrapped.no_sync():
            (wrapped(**rows(rank)[step]).loss / 2).backward()
        (wrapped(**rows(rank)[step + 1]).loss / 2).backward()
        for name, p in mask.parameters(wrapped).items():
            assert not p.grad[~mask.tensors[name]].any()
        norms.append(float(torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 0.5)))
        optimizer.step()
        optimizer.zero_grad()
    return {"values": values(model), "norms": norms, "hash": mask.hash}


def test_two_processes_train_as_one(tmp_path):
    start_two(functools.partial(work, port=free_port(), out=str(tmp_path)))
    model = adapted("bert")
    mask = mask_of(model, "bert")
    before = values(model)
    optimizer = mask.optimizer(torch.optim.AdamW, lr=3e-3, weight_decay=0.1)
    batches = [rows()[i] for step in range(3) for i in (step, step + 1)]
    norms = train(model, optimizer, batches, 3, accumulation=2, clip=0.5)
    assert frozen_everywhere(mask, before, model)
    for view in (False, True):
        first, second = (torch.load(tmp_path / f"{rank}-{view}.pt", weights_only=True) for rank in (0, 1))
        assert first["hash"] == second["hash"] == mask.hash
        assert first["norms"] == pytest.approx(norms, rel=1e-9)
        for name, value in values(model).items():
            found = first["values"][name]
            assert torch.equal(found, second["values"][name])
            torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-12)
            if name in mask.tensors:
                assert torch.equal(found[~mask.tensors[name]], before[name][~mask.tensors[name]])
