"""Silencing the gradients of entries that are not kept, before anyone looks at their norm."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd import Variable

from tailora.masks.flat import Flat


class GradientMask:
    """Hooks that leave only kept entries in ``parameter.grad`` when ``backward()`` returns.

    Each parameter's gradient moves into its buffer as it arrives, so it is never held twice; one sweep over the buffer
    at the end of the backward pass silences what is not kept.  The sweep runs after the gradients of several processes
    were added up: DistributedDataParallel does that in a callback of the same kind, and ours goes to the end of the
    queue.  What clips or unscales gradients afterwards therefore sees kept entries only.
    """

    def __init__(self, flats: Sequence[Flat]) -> None:
        """Hook the parameters.

        Args:
            flats: Their buffers.
        """
        self._flats = list(flats)
        self._task = -1
        itself: weakref.ref[GradientMask] = weakref.ref(self)
        handles = [
            parameter.register_post_accumulate_grad_hook(_hook(itself, flat, index))
            for flat in self._flats
            for index, parameter in enumerate(flat.parameters)
        ]
        # Without this, a mask that nobody holds any more would go on cutting gradients.
        self._finalizer = weakref.finalize(self, _remove, handles)

    def close(self) -> None:
        """Take the hooks away."""
        self._finalizer()

    def arrived(self, flat: Flat, index: int) -> None:
        """Take in one parameter's gradient; called while the backward pass runs.

        Args:
            flat: The buffer.
            index: Which of its parameters.
        """
        if flat.closed or flat.paused:
            return
        flat.take_gradient(index)
        # The number of the backward pass: a flag would stay set after a pass that failed.
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task = task
            engine: Any = Variable._execution_engine
            engine.queue_callback(lambda: engine.queue_callback(self.silence))

    def silence(self) -> None:
        """Silence everything that is not kept."""
        self._task = -1
        for flat in self._flats:
            if not flat.closed:
                for index in range(len(flat.parameters)):
                    flat.take_gradient(index)
                flat.silence()


def _hook(mask: weakref.ref[GradientMask], flat: Flat, index: int) -> Callable[[nn.Parameter], None]:
    """Return the hook of one parameter; it holds the mask no longer than its owner does."""
    weak = weakref.ref(flat)

    def hook(parameter: nn.Parameter) -> None:
        owner, buffer = mask(), weak()
        if owner is not None and buffer is not None:
            owner.arrived(buffer, index)

    return hook


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
