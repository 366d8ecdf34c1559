"""Masked training against unmasked: the optimizer's step, the whole training step, and memory.

Run: python benchmarks/mask.py [--rounds 15] [--threads 2]

About 5 million LoRA parameters in 224 tensors.  Every round measures every row once, in a new order; a row's ratio is
the median over rounds of the row divided by the reference of the same round (dense fused AdamW for the step, the
unmasked training for the whole step).
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import warnings
from collections.abc import Callable
from typing import Any

from timing import compare

# This folder's profile.py would hide the standard library's, which torch imports.
sys.path.pop(0)
import torch
from torch import nn

from tailora.masks.callback import Guard
from tailora.masks.mask import FisherMask
from tailora.masks.optimizer import Group, MaskedOptimizer
from tailora.masks.selection import select

KEEPS = (0.01, 0.1, 0.5)
OPTIONS = {"lr": 1e-4, "weight_decay": 0.01}


def adapted_model() -> Any:
    """Return a Llama of 16 layers with LoRA of rank 64 on its 112 matrices, B not zero."""
    import peft
    import transformers as tf

    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora = peft.LoraConfig(r=64, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(tf.LlamaForCausalLM(config), lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    return model.train()


def random_positions(shapes: dict[str, tuple[int, ...]], keep: float) -> dict[str, torch.Tensor]:
    """Return kept entries, drawn over all tensors."""
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    return select({name: torch.zeros(shape) for name, shape in shapes.items()}, int(total * keep), "random")[0]


def parameters_like(shapes: dict[str, tuple[int, ...]], seed: int) -> list[nn.Parameter]:
    """Return parameters with gradients."""
    generator = torch.Generator().manual_seed(seed)
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes.values()]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return made


def step_rows(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[Callable[[], Any], Callable[[], dict[str, int]]]]:
    """Return the optimizer steps to time, each with what tells its bytes."""
    rows: dict[str, Any] = {}

    def dense(name: str, **kernel: Any) -> None:
        parameters = parameters_like(shapes, len(rows))
        optimizer = torch.optim.AdamW(parameters, **OPTIONS, **kernel)
        rows[name] = (optimizer.step, lambda: {"state": state_bytes(optimizer), "bookkeeping": 0, "vectors": 0})

    def multiplied(name: str, masks: list[torch.Tensor], **kernel: Any) -> None:
        parameters = parameters_like(shapes, len(rows))
        optimizer = torch.optim.AdamW(parameters, **OPTIONS, **kernel)

        def step() -> None:
            for parameter, mask in zip(parameters, masks, strict=True):
                if parameter.grad is not None:
                    parameter.grad.mul_(mask)
            optimizer.step()

        held = sum(mask.numel() for mask in masks)
        rows[name] = (step, lambda: {"state": state_bytes(optimizer), "bookkeeping": held, "vectors": 0})

    def masked(name: str, positions: dict[str, torch.Tensor], **kernel: Any) -> None:
        parameters = parameters_like(shapes, len(rows))
        group = Group(parameters, list(positions.values()), {})
        optimizer = MaskedOptimizer(torch.optim.AdamW, [group], name, **OPTIONS, **kernel)
        # Gradients lie in the buffer when a backward pass is over.
        optimizer._mask.silence()
        rows[name] = (optimizer.step, optimizer.sizes)

    dense("dense AdamW")
    dense("dense AdamW, fused", fused=True)
    dense("dense AdamW, fused (again)", fused=True)
    for keep in KEEPS:
        positions = random_positions(shapes, keep)
        masks = []
        for name, shape in shapes.items():
            flat = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool)
            masks.append(flat.index_fill_(0, positions[name].long(), True).view(shape))
        multiplied(f"mask multiplied, fused, {keep:.0%}", masks, fused=True)
        masked(f"ours, {keep:.0%}", positions)
        masked(f"ours, fused, {keep:.0%}", positions, fused=True)
    return rows


def training_rows(model: Any) -> dict[str, Callable[[], Any]]:
    """Return whole training steps: forward, backward, clipping, optimizer."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 1000, (16, 64), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    rows: dict[str, Callable[[], Any]] = {}

    def add(name: str, own: Any, optimizer: torch.optim.Optimizer, *held: Any) -> None:
        trained = [parameter for parameter in own.parameters() if parameter.requires_grad]

        def step(_: Any = held) -> None:
            own(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        rows[name] = step

    for name in ("unmasked, dense fused", "unmasked, dense fused (again)"):
        own = copy.deepcopy(model)
        add(name, own, torch.optim.AdamW([p for p in own.parameters() if p.requires_grad], **OPTIONS, fused=True))
    for keep in KEEPS:
        own = copy.deepcopy(model)
        mask = FisherMask(random_positions(shapes, keep), shapes, {}, own)
        add(f"ours, fused, {keep:.0%}", own, mask.optimizer(torch.optim.AdamW, **OPTIONS, fused=True))
    own = copy.deepcopy(model)
    mask = FisherMask(random_positions(shapes, 0.1), shapes, {}, own)
    dense = torch.optim.AdamW([p for p in own.parameters() if p.requires_grad], **OPTIONS, fused=True)
    add("callback, dense fused, 10%", own, dense, Guard(mask, own, dense))
    return rows


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of an optimizer's state."""
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in tensors if isinstance(value, torch.Tensor))


def line(name: str, taken: dict[str, list[float]], reference: str) -> str:
    """Return a row of the table."""
    ratio = statistics.median(a / b for a, b in zip(taken[name], taken[reference], strict=True))
    return f"{name:34s} {statistics.median(taken[name]) * 1e3:9.2f} ms  {ratio:6.3f}"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves them as they are")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    model = adapted_model()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    print(f"{total:,} adapter parameters in {len(shapes)} tensors, {given.rounds} rounds, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    rows = step_rows(shapes)
    taken = compare({name: row for name, (row, _) in rows.items()}, given.rounds)
    print("optimizer step                          median   ratio to dense fused; bytes per candidate entry")
    for name, (_, sizes) in rows.items():
        held = sizes()
        share = "  ".join(f"{key} {held[key] / total:5.2f}" for key in ("state", "bookkeeping", "vectors"))
        print(f"{line(name, taken, 'dense AdamW, fused')}   {share}")
    del rows
    gc.collect()
    training = training_rows(model)
    taken = compare(training, given.rounds)
    print("\nwhole training step, 16 x 64 tokens     median   ratio to unmasked")
    for name in training:
        print(line(name, taken, "unmasked, dense fused"))


if __name__ == "__main__":
    main()
