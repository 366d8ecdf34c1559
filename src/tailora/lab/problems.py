"""Planted problems built: base, teacher, targets, and the batches everybody sees."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tailora.lab.architectures import build_base
from tailora.lab.planting import plant, planted_ranks, sizes
from tailora.lab.spec import ProblemSpec
from tailora.placement import select
from tailora.targets import Target, find_targets

Batch = dict[str, Tensor]
"""``input_ids`` (and T5's ``decoder_input_ids``) ``[n, length]``, and ``loss_target``: what a loss compares with."""

_BASE, _PLANT, _TRAIN, _CALIBRATE, _VALIDATE, _TEST, _POOL, _LABELS, _ORDER = range(9)
_WHOLE = 256


def private_generator(seed: int, *purpose: int) -> torch.Generator:
    """Return a generator of its own for every purpose, so that no draw depends on another's length.

    Args:
        seed: The problem's seed.
        *purpose: Small numbers that name what is drawn.

    Returns:
        A generator.
    """
    mixed = seed
    for number in purpose:
        # Knuth's multiplicative constant; neighbouring seeds must not give neighbouring streams.
        mixed = (mixed * 2654435761 + number + 1) % 2**61
    return torch.Generator().manual_seed(mixed)


@dataclass(frozen=True)
class PlantedProblem:
    """A planted problem, ready to train on.

    Attributes:
        spec: Its description.
        base: The model that students adapt, frozen.
        teacher: The base with the planted updates, frozen.
        targets: The candidates, in the model's order.
        planted: Name of every candidate to its planted rank.
        spectra: Name of every planted target to its update's singular values, float64.
    """

    spec: ProblemSpec
    base: nn.Module
    teacher: nn.Module
    targets: tuple[Target, ...]
    planted: Mapping[str, int]
    spectra: Mapping[str, Tensor]
    cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def step_tokens(self) -> int:
        """Tokens whose loss counts in one training step."""
        return self.spec.batch * self.spec.length

    @functools.cached_property
    def held_out(self) -> Batch:
        """The test batch: the teacher's true distribution, whatever the students are shown."""
        return self._batch(self._fresh(_TEST, self.spec.evaluation), clean=True)

    @functools.cached_property
    def validation(self) -> Batch:
        """Another clean batch, for choosing learning rates."""
        return self._batch(self._fresh(_VALIDATE, self.spec.evaluation), clean=True)

    def calibration(self, size: int = 32) -> list[Batch]:
        """Return batches for allocators: of the training sequences where these are limited, with their labels.

        Args:
            size: Sequences of a batch.

        Returns:
            Batches of ``spec.calibration`` sequences together.
        """
        spec = self.spec
        pool = self._pool()
        if pool is None:
            inputs = self._fresh(_CALIBRATE, spec.calibration)
        else:
            inputs = {name: rows[: spec.calibration] for name, rows in pool.items()}
        whole = self._batch(inputs, labels=private_generator(spec.seed, _LABELS, 0))
        count = len(whole["input_ids"])
        return [{name: rows[start : start + size] for name, rows in whole.items()} for start in range(0, count, size)]

    def training(self) -> Iterator[Batch]:
        """Yield training batches for ever, the same ones each time this is called."""
        spec = self.spec
        pool = self._pool()
        # New tokens and their labels come from a stream that a longer training only continues.
        tokens, labels = private_generator(spec.seed, _TRAIN), private_generator(spec.seed, _LABELS, 1)
        order, left = private_generator(spec.seed, _ORDER), torch.empty(0, dtype=torch.long)
        while True:
            if pool is None:
                inputs = self._draw(spec.batch, tokens)
            else:
                while len(left) < spec.batch:
                    left = torch.cat([left, torch.randperm(len(pool["input_ids"]), generator=order)])
                rows, left = left[: spec.batch], left[spec.batch :]
                inputs = {name: values[rows] for name, values in pool.items()}
            yield self._batch(inputs, labels=labels)

    def _pool(self) -> Batch | None:
        """Return the limited training sequences, ``None`` where there is no limit."""
        if self.spec.sequences is None:
            return None
        if "pool" not in self.cache:
            self.cache["pool"] = self._fresh(_POOL, self.spec.sequences)
        return self.cache["pool"]

    def _fresh(self, purpose: int, count: int) -> Batch:
        return self._draw(count, private_generator(self.spec.seed, purpose))

    def _draw(self, count: int, generator: torch.Generator) -> Batch:
        """Draw inputs."""
        config: Any = self.base.config
        length, vocabulary = self.spec.length, int(config.vocab_size)
        if self.spec.tokens == "model":
            return {"input_ids": _sampled_text(self.base, count, length, generator)}
        inputs = {"input_ids": torch.randint(0, vocabulary, (count, length), generator=generator)}
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.randint(0, vocabulary, (count, length), generator=generator)
        return inputs

    @torch.no_grad()
    def _batch(self, inputs: Batch, *, labels: torch.Generator | None = None, clean: bool = False) -> Batch:
        """Add what the teacher says: log-probabilities ``[n, length, vocabulary]``, or drawn tokens ``[n, length]``."""
        count = len(inputs["input_ids"])
        parts = [
            self.teacher(**{name: rows[start : start + _WHOLE] for name, rows in inputs.items()}).logits
            for start in range(0, count, _WHOLE)
        ]
        known = torch.cat(parts).log_softmax(dim=-1)
        if clean:
            return {**inputs, "loss_target": known}
        if self.spec.noise:
            noise = self.spec.noise
            known = torch.log((1 - noise) * known.exp() + noise / known.shape[-1])
        if self.spec.labels == "distribution":
            return {**inputs, "loss_target": known}
        # The exponential race draws from every row at once: the smallest of Exp(1) / p is token i with chance p_i.
        race = torch.empty_like(known).exponential_(generator=labels)
        return {**inputs, "loss_target": (race.log() - known).argmin(dim=-1)}


@torch.no_grad()
def _sampled_text(model: nn.Module, count: int, length: int, generator: torch.Generator) -> Tensor:
    """Sample sequences from a causal language model, first token uniform."""
    config: Any = model.config
    vocabulary = int(config.vocab_size)
    tokens = torch.randint(0, vocabulary, (count, 1), generator=generator)
    for _ in range(length - 1):
        logits = model(input_ids=tokens).logits[:, -1]
        drawn = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
        tokens = torch.cat([tokens, drawn], dim=1)
    return tokens


def build(spec: ProblemSpec) -> PlantedProblem:
    """Build a planted problem.

    Args:
        spec: Its description.

    Returns:
        The problem; equal descriptions give equal problems, whatever the global random state is.

    Raises:
        UserError: The architecture is unknown or the planting plants nothing.
    """
    base = build_base(spec.architecture, spec.shape, private_generator(spec.seed, _BASE))
    targets = tuple(select(find_targets(base), "all-linear"))
    generator = private_generator(spec.seed, _PLANT)
    planted = planted_ranks(targets, spec.planting, generator)
    teacher = copy.deepcopy(base)
    spectra = plant(teacher, planted, sizes(targets, planted, spec.planting), spec.planting.decay, generator)
    return PlantedProblem(spec, base, teacher, targets, planted, spectra)
