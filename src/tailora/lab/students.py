"""Many LoRA students of one problem trained at once, as one model on a larger batch.

Every student sees the same tokens.  The batch is repeated once per student, every adapted matrix multiplies each
repetition by its own student's effective weight ``W + scale * B A``, and everything else of a transformer treats rows
alike; so no architecture needs code of its own.  Factors are padded to the largest rank of a target: a padded row of
``A`` and column of ``B`` are zero, get no gradient and stay zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tailora.lab.losses import student_losses
from tailora.lab.optimizer import BatchedAdamW, cosine
from tailora.lab.problems import Batch, private_generator
from tailora.targets import Target

_FACTORS = 101
_ROWS = 16


@dataclass(frozen=True)
class Student:
    """One adapter to train.

    Attributes:
        ranks: Target name to rank; what is missing has rank 0.
        learning_rate: Peak learning rate.
        scale: LoRA's ``alpha / r``, the same on every target.
        seed: Of the initial ``A``.
        start: Target name to the factors ``A [rank, in]`` and ``B [out, rank]`` it starts from; ``None`` for peft's
            start, ``A`` random and ``B`` zero.
    """

    ranks: Mapping[str, int]
    learning_rate: float
    scale: float = 2.0
    seed: int = 0
    start: Mapping[str, tuple[Tensor, Tensor]] | None = None


class StudentLinear(nn.Module):
    """A frozen linear layer with one low-rank update per student.

    Attributes:
        weight: The frozen weight ``[out, in]``.
        a: ``[students, rank, in]``.
        b: ``[students, out, rank]``.
        scales: ``[students, 1, 1]``.
    """

    weight: Tensor
    bias: Tensor | None
    scales: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scales: Tensor) -> None:
        """Take over frozen and initial values.

        Args:
            weight: ``[out, in]``.
            bias: ``[out]``.
            a: Initial ``A``, zero in padded rows.
            b: Initial ``B``, zero in padded columns.
            scales: ``[students, 1, 1]``.
        """
        super().__init__()
        # T5 asks its layers for a weight to learn its type.
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("scales", scales)
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(b)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``[students * n, ..., in]`` to ``[students * n, ..., out]``."""
        count = len(self.a)
        whole = torch.baddbmm(self.weight.expand(count, *self.weight.shape), self.b * self.scales, self.a)
        rows = inputs.reshape(count, -1, inputs.shape[-1])
        mapped = torch.bmm(rows, whole.transpose(1, 2))
        if self.bias is not None:
            mapped = mapped + self.bias
        return mapped.view(*inputs.shape[:-1], -1)


class Stack:
    """Students of one base model in one module.

    Attributes:
        students: Who is trained, in order.
        begin: The step of the schedule at which they join.
        model: The base with ``StudentLinear`` layers.
        layers: Target name to its layer.
    """

    def __init__(
        self, base: nn.Module, targets: Sequence[Target], students: Sequence[Student], *, begin: int = 0
    ) -> None:
        """Make the module.

        Args:
            base: The base model; it is copied.
            targets: Its candidates.
            students: At least one.
            begin: The step of the schedule at which they join; earlier steps were somebody else's.
        """
        self.students = tuple(students)
        self.begin = begin
        self.model = copy.deepcopy(base).requires_grad_(False)
        self.layers: dict[str, StudentLinear] = {}
        dtype = next(base.parameters()).dtype
        scales = torch.tensor([student.scale for student in students], dtype=dtype)[:, None, None]
        for target in targets:
            ranks = [student.ranks.get(target.name, 0) for student in students]
            if not any(ranks):
                continue
            module: Any = self.model.get_submodule(target.name)
            weight = module.weight.detach().T.contiguous() if target.kind == "conv1d" else module.weight.detach()
            a = torch.zeros(len(students), max(ranks), weight.shape[1], dtype=dtype)
            b = torch.zeros(len(students), weight.shape[0], max(ranks), dtype=dtype)
            for place, (student, rank) in enumerate(zip(students, ranks, strict=True)):
                if student.start is None:
                    a[place, :rank] = initial_rows(target.name, weight.shape[1], rank, student.seed)
                elif rank:
                    a[place, :rank], b[place, :, :rank] = student.start[target.name]
            layer = StudentLinear(weight, getattr(module, "bias", None), a, b, scales)
            parent, _, leaf = target.name.rpartition(".")
            setattr(self.model.get_submodule(parent), leaf, layer)
            self.layers[target.name] = layer

    def parameters(self) -> list[Tensor]:
        """Return all factors."""
        return [factor for layer in self.layers.values() for factor in (layer.a, layer.b)]

    def optimizer(self, **options: Any) -> BatchedAdamW:
        """Return an optimizer with every student's own learning rate."""
        factors = self.parameters()
        rates = torch.tensor([student.learning_rate for student in self.students], dtype=factors[0].dtype)
        return BatchedAdamW(factors, rates, **options)

    def losses(self, batch: Batch) -> Tensor:
        """Return every student's mean loss on a batch, ``[students]``, nats per position."""
        count = len(self.students)
        inputs = {
            name: rows.repeat(count, *[1] * (rows.dim() - 1))
            for name, rows in batch.items()
            if not name.startswith("loss_")
        }
        logits = self.model(**inputs).logits
        return student_losses(logits.view(count, -1, *logits.shape[1:]), batch["loss_target"]).mean(dim=1)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> list[float]:
        """Return every student's mean loss on a large batch; infinite where it is no number.

        Args:
            batch: Inputs and targets.

        Returns:
            Nats per position.
        """
        count = len(batch["input_ids"])
        total = torch.zeros(len(self.students), dtype=torch.float64)
        for start in range(0, count, _ROWS):
            part = {name: rows[start : start + _ROWS] for name, rows in batch.items()}
            total += self.losses(part).double() * len(part["input_ids"])
        return [value if math.isfinite(value) else math.inf for value in (total / count).tolist()]


def initial_rows(name: str, inputs: int, rank: int, seed: int) -> Tensor:
    """Return peft's Kaiming-uniform start of ``A``, whose first rows do not depend on how many follow.

    Args:
        name: The target.
        inputs: Its width.
        rank: How many rows.
        seed: The student's.

    Returns:
        ``[rank, in]`` in the default dtype.
    """
    bound = 1 / math.sqrt(inputs)
    generator = private_generator(seed, _FACTORS, *name.encode())
    return torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)


def train(
    stacks: Sequence[Stack],
    batches: Iterable[Batch],
    steps: int,
    *,
    until: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Train all students on the same batches with AdamW and a cosine schedule.

    Students who join later do so at the schedule's learning rate of that step, with an optimizer that knows nothing.

    Args:
        stacks: The students; several stacks share each batch, smaller ones suit the processor's cache.
        batches: At least ``steps`` batches, taken once for all.
        steps: Steps of the schedule.
        until: Stop before this step, the schedule unchanged; at its end where left out.
        progress: Called with the number of steps done.
    """
    optimizers = [stack.optimizer() for stack in stacks]
    stream = iter(batches)
    for step in range(steps if until is None else until):
        batch = next(stream)
        for stack, optimizer in zip(stacks, optimizers, strict=True):
            if step < stack.begin:
                continue
            stack.losses(batch).sum().backward()
            optimizer.step(cosine(step, steps))
        if progress is not None:
            progress(step + 1)
