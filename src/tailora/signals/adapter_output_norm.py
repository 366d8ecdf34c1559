"""How much a trained LoRA adds to the output of its target: LoRA-drop's score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tailora.errors import UserError
from tailora.signals.adapted import active_adapters
from tailora.signals.base import Context, Statistic
from tailora.signals.observations import Observation, accumulator_dtype, wide


def adapter_output_norm(context: Context, statistics: Any) -> np.ndarray:
    """Return the mean over real positions of ``||scaling * B A x||^2``, what the adapter adds to a target's output.

    Zhou et al. 2024, LoRA-drop, arXiv 2402.07721, train a LoRA briefly, score every layer by the norm of its adapter's
    output on a sample of the data, and keep the layers with the largest scores.  That the importance is the adapter's
    output was verified; that the score is the *squared* norm, summed over a subset after brief training and then
    divided by its sum over the layers, is from memory, and no code of theirs was found.  The values here are divided by
    nothing but the number of positions: divide by their sum for shares.

    The outputs of several active adapters are added before the norm is taken, as the layer adds them.  The adapter's
    own dropout is left out; a bias of B counts.  Of a DoRA the low-rank part alone is measured, before its magnitude
    rescales the layer.  Unit: squared activation.

    Args:
        context: A model with LoRA, and targets that carry one.
        statistics: With ``AdapterOutputs``.

    Returns:
        float64 ``[n_targets]``; zeros for a fresh LoRA, whose B is zero.
    """
    return statistics[AdapterOutputs].means()


class AdapterOutputs(Statistic):
    """``sum ||scaling * B A x||^2`` over real positions and their number, per target."""

    source = "inputs"

    def __init__(self, context: Context) -> None:
        """Start at zero."""
        super().__init__(context)
        # Sums stay on their layer's device until the end: one synchronisation, not one a target a batch.
        self._squares: list[Tensor | None] = [None] * len(context.targets)
        self._counts: list[Tensor | None] = [None] * len(context.targets)

    def update(self, index: int, seen: Observation) -> None:
        """Add the squared lengths of the adapter's outputs at real positions.

        Raises:
            UserError: The target carries no LoRA, or one whose output is not ``scaling * B A x``.
        """
        if seen.inputs is None:
            return
        name = self.context.targets[index].name
        layer: Any = self.context.model.get_submodule(name)
        if not hasattr(layer, "lora_A"):
            raise UserError(f"target {name!r} carries no LoRA, whose output could be measured; give a peft model")
        inputs = wide(seen.inputs).flatten(0, 1)
        real = inputs.new_ones(len(inputs), dtype=torch.bool) if seen.real is None else seen.real.flatten()
        outputs = [_output(layer, adapter, inputs) for adapter in active_adapters(layer, name)]
        lengths = torch.zeros((), dtype=torch.float64, device=inputs.device)
        if outputs:
            added = torch.stack(outputs).sum(dim=0) if len(outputs) > 1 else outputs[0]
            lengths = (torch.linalg.vector_norm(added, dim=1).double().square() * real).sum()
        squares, counts = self._squares[index], self._counts[index]
        self._squares[index] = lengths if squares is None else squares + lengths
        self._counts[index] = real.sum() if counts is None else counts + real.sum()

    def means(self) -> np.ndarray:
        """Return the mean squared length per target, float64 ``[n_targets]``; 0 where no position was seen."""
        sums = self.state()
        return (sums["squares"] / sums["counts"].clamp(min=1)).numpy()

    def state(self) -> dict[str, Tensor]:
        """Return ``squares`` and ``counts``, ``[n_targets]`` each, on the host."""
        zero, none = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
        return {
            "squares": torch.stack([zero if held is None else held.cpu() for held in self._squares]),
            "counts": torch.stack([none if held is None else held.cpu() for held in self._counts]),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the sums."""
        self._squares, self._counts = list(state["squares"].double().unbind()), list(state["counts"].unbind())


def _output(layer: Any, adapter: str, inputs: Tensor) -> Tensor:
    """Return what one adapter adds, ``[positions, out]``."""
    down, up = layer.lora_A[adapter], layer.lora_B[adapter]
    dtype = torch.promote_types(inputs.dtype, accumulator_dtype(down.weight.dtype))
    bias = None if up.bias is None else up.bias.to(dtype)
    low = F.linear(inputs.to(dtype), down.weight.to(dtype))
    return F.linear(low, up.weight.to(dtype), bias) * layer.scaling[adapter]
