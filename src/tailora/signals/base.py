"""What a signal is, and what it is read from: statistics that are summed batch by batch."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from tailora.signals.observations import Observation
from tailora.targets import Target

Source = Literal["gradients", "inputs"]


@dataclass(frozen=True)
class Context:
    """What statistics and signals may look at.

    Attributes:
        model: The model, in the state of the pass; weights may be read, nothing may be changed.
        targets: What is measured.
        seed: For whatever is drawn at random; each draw makes its own generator from it.
        options: Further options, such as ``sketch``, the width of random sketches.
        cache: What several signals compute alike.
    """

    model: nn.Module
    targets: Sequence[Target]
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)


class Statistic(abc.ABC):
    """Sums over the calibration examples, from which signals are read.

    Everything in ``state`` is a sum over examples, so the statistics of two processes, of two data sets or of two
    sittings are added by adding their states.

    Attributes:
        source: ``gradients`` (inputs and the loss's gradients) or ``inputs`` (a forward pass is enough).
    """

    source: ClassVar[Source]

    def __init__(self, context: Context) -> None:
        """Start at zero."""
        self.context = context

    @abc.abstractmethod
    def update(self, index: int, seen: Observation) -> None:
        """Take in what target ``index`` saw of some examples, each example once."""

    def end_batch(self, examples: int) -> None:  # noqa: B027 - most have nothing to close
        """Close a batch in which ``examples`` examples counted."""

    @abc.abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return the sums by name; the names do not depend on the data."""

    @abc.abstractmethod
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take sums that ``state`` returned, or the sum of several such."""


Statistics = Mapping[type[Statistic], Statistic]


def sums_of(statistics: Statistics) -> dict[str, Tensor]:
    """Return all sums by the statistic's and their own name.

    Args:
        statistics: The statistics of a pass.

    Returns:
        ``Statistic/name`` to contiguous tensors on the host.
    """
    return {
        f"{kind.__name__}/{name}": tensor.detach().cpu().contiguous()
        for kind, statistic in statistics.items()
        for name, tensor in statistic.state().items()
    }


def load_sums(statistics: Statistics, sums: Mapping[str, Tensor]) -> None:
    """Give statistics the sums that ``sums_of`` returned.

    Args:
        statistics: Statistics of the same kinds and targets; changed.
        sums: The sums.

    Raises:
        KeyError: A sum is missing.
    """
    for kind, statistic in statistics.items():
        prefix = f"{kind.__name__}/"
        statistic.load({n.removeprefix(prefix): tensor for n, tensor in sums.items() if n.startswith(prefix)})


@dataclass(frozen=True)
class Solved:
    """What came of several passes over the batches.

    Attributes:
        values: The signal, first axis in target order.
        examples: Examples that counted.
        batches: Batches of one pass.
        loss: Name of the per-example loss.
        mean_loss: Mean loss over the examples, in nats.
        notes: What a profile's ``meta`` says about it.
    """

    values: np.ndarray
    examples: int
    batches: int
    loss: str
    mean_loss: float
    notes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Signal:
    """A registered signal.

    Attributes:
        read: Makes the array, first axis in target order, from the context and the statistics in ``needs``.
        needs: The statistics it is read from; empty for signals of the weights alone.
        unit: What one value is measured in.
        shape: Shape of the result, in words.
        states: Whether it needs the hidden states of every block.
        weights: Whether it reads the model's weights.
        whole: Whether it needs gradients in whole, where others would do with a sketch.
        adapter: Whether it is read from a model that carries a LoRA, where others take the base model.
        solve: Goes over the batches several times, given the context, all of them and how a pass is made; what it
            returns lies in the context's cache under the signal's name when ``read`` is called.
    """

    read: Callable[[Context, Any], np.ndarray]
    needs: tuple[type[Statistic], ...]
    unit: str
    shape: str
    states: bool = False
    weights: bool = False
    whole: bool = False
    adapter: bool = False
    solve: Callable[[Context, Sequence[Mapping[str, Any]], Any], Solved] | None = None
