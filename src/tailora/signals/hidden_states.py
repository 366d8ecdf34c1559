"""Pooled hidden states of every block's input and output, the same rows for all blocks."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tailora.errors import ProfileError, unknown_name
from tailora.signals.blocks import Block, find_blocks
from tailora.signals.pooling import pool
from tailora.signals.quiet import Pausable
from tailora.signals.row_files import RowFiles
from tailora.targets import Target

Pooling = Literal["mean", "last", "first"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
IGNORED_LABEL = -100
SPILL_BYTES = 2**29
"""Bytes of pooled states held in memory before all of them go to temporary files: 512 MiB."""

# Layouts that cannot be told from the shapes when there are as many positions as examples.
TIME_FIRST = frozenset({"xlnet"})
_NO_TOKENS = frozenset({"vision", "audio"})


@dataclass
class _Pass:
    """What one forward pass has left so far."""

    masks: Mapping[str, Tensor | None]
    sizes: frozenset[tuple[int, int]]
    pooled: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    last: tuple[Any, int, Tensor] | None = None


class BlockStates(Pausable):
    """Collects the pooled hidden states at both ends of every block while a model runs.

    ``start`` registers hooks and ``stop`` removes them.  Every call of the model starts a pass of its own, which
    ``commit`` adds to the rows held and ``clear`` (or the next call) throws away, so a batch may be run again.  States
    are pooled in the hook, detached, to one float32 row per example; nothing of the graph is kept, and calls of a
    block outside of the model's own forward (recomputation in gradient checkpointing) do not count.

    - ``mean``: over the real tokens; ``last``: the last real token; ``first``: the first real token ([CLS]).
    - Real tokens are those of ``attention_mask``; in the decoder of an encoder-decoder model those of
      ``decoder_attention_mask``, else where ``labels`` is not -100, else all.  Vision and audio towers have no mask.
    - A block called several times in a pass (ALBERT's shared layers) counts from its first input to its last output.

    Args:
        model: The model whose ``forward`` is called.
        targets: Tell where the blocks are; targets outside of blocks are passed over.
        pooling: ``mean``, ``last`` or ``first``.
        spill_bytes: Above this many bytes rows go to temporary files, which are removed by ``close``, at the end of a
            ``with`` and when the object dies.

    Raises:
        UserError: An unknown pooling, or no target lies in a block.
        ProfileError: The blocks cannot be found as modules of their own.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        pooling: str = "mean",
        *,
        spill_bytes: int = SPILL_BYTES,
    ) -> None:
        if pooling not in POOLINGS:
            raise unknown_name("pooling", str(pooling), POOLINGS)
        self.model, self.pooling = model, pooling
        self.blocks: tuple[Block, ...] = find_blocks(model, targets)
        self.examples = 0
        config = getattr(model, "config", None)
        self._time_first = getattr(config, "model_type", None) in TIME_FIRST
        self._two_towers = bool(getattr(config, "is_encoder_decoder", False))
        self._rows = RowFiles(2 * len(self.blocks), spill_bytes)
        # An end that is always the very tensor of another end is held once.
        self._same_as: dict[int, int] = {}
        self._pass: _Pass | None = None
        self._running = False
        self._handles: list[Any] = []

    def __enter__(self) -> BlockStates:
        """Return itself; ``__exit__`` stops and removes files."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop and remove files."""
        self.stop()
        self.close()

    def start(self) -> None:
        """Register the hooks; does nothing when they are there."""
        if self._handles:
            return
        add = self._handles.append
        add(self.model.register_forward_pre_hook(self._before, with_kwargs=True))
        add(self.model.register_forward_hook(self._after, with_kwargs=True))
        for index, block in enumerate(self.blocks):
            module = self.model.get_submodule(block.name)
            add(module.register_forward_pre_hook(self._input_hook(index), with_kwargs=True))
            add(module.register_forward_hook(self._output_hook(index), with_kwargs=True))

    def stop(self) -> None:
        """Remove the hooks and forget the current pass; the rows committed stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def clear(self) -> None:
        """Forget the current pass."""
        self._pass, self._running = None, False

    def gathered(self, rows: Sequence[Mapping[int, np.ndarray]]) -> None:
        """Take the rows of several processes in the place of one's own.

        Args:
            rows: What ``own_rows`` returned in each process, in the same order everywhere.
        """
        self._rows.close()
        self._rows = RowFiles(2 * len(self.blocks), self._rows.limit)
        for one in rows:
            self._rows.append(one)
        self.examples = sum(len(next(iter(one.values()))) for one in rows if one)

    def own_rows(self) -> dict[int, np.ndarray]:
        """Return this process's rows by slot, for ``gathered``."""
        slots = [slot for slot in range(2 * len(self.blocks)) if slot not in self._same_as]
        return {slot: np.array(self._rows.array(slot)) for slot in slots} if self.examples else {}

    def close(self) -> None:
        """Forget all rows and remove their files."""
        self._rows.close()
        self.examples = 0

    def commit(self, batch: Mapping[str, Any], rows: Tensor | Sequence[int] | None = None) -> int:
        """Keep the pooled states of the last complete pass.

        Args:
            batch: The batch of that pass, for messages and to make sure that it was this one.
            rows: Which of its examples to keep, indices or a boolean mask; all where not given.

        Returns:
            How many rows were added.

        Raises:
            ProfileError: There is no complete pass, a block was not called, or a state is not finite.
        """
        taken, self._pass = self._pass, None
        if taken is None or self._running:
            raise ProfileError(
                "there is no complete forward pass to keep; call the model after start() and then commit()"
            )
        sizes = {len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim}
        chosen = None if rows is None else torch.as_tensor(rows).cpu()
        kept: list[np.ndarray] = []
        for index, block in enumerate(self.blocks):
            for side in (0, 1):
                pooled = taken.pooled.get((index, side))
                if pooled is None:
                    raise ProfileError(
                        f"block {block.name!r} was not called in the forward pass; leave its targets out"
                    )
                if sizes and len(pooled) not in sizes:
                    raise ProfileError(
                        f"block {block.name!r} held {len(pooled)} examples and the batch committed has "
                        f"{sorted(sizes)}; commit the batch that the model was called with"
                    )
                kept.append(self._checked(pooled, chosen, block))
        sources = [taken.pooled[index, side] for index in range(len(self.blocks)) for side in (0, 1)]
        self._find_same(sources)
        self._rows.append({slot: values for slot, values in enumerate(kept) if slot not in self._same_as})
        self.examples += len(kept[0])
        return len(kept[0])

    def result(self) -> States:
        """Return the rows committed so far.

        Returns:
            The blocks and access to the states at both ends of each; valid until ``close``.

        Raises:
            ProfileError: Nothing was committed.
        """
        if not self.examples:
            raise ProfileError("no hidden states were collected; run at least one batch and commit it")
        return States(self.blocks, self.examples, self._rows, dict(self._same_as))

    def _checked(self, pooled: Tensor, chosen: Tensor | None, block: Block) -> np.ndarray:
        """Return the chosen rows as a float32 array, refusing what is not finite."""
        picked = pooled if chosen is None else pooled[chosen.to(pooled.device)]
        values = picked.to(device="cpu", dtype=torch.float32).numpy()
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values).all(axis=1)))
            raise ProfileError(
                f"the hidden state of example {row} at block {block.name!r} is not finite; look at that example (has "
                "it any real token?), leave it out, or profile in float32"
            )
        return values

    def _find_same(self, sources: Sequence[Tensor]) -> None:
        """Note which ends are the same tensor, and undo that where it was so before and no longer is."""
        found = {slot: slot - 1 for slot in range(2, len(sources), 2) if sources[slot] is sources[slot - 1]}
        if not self.examples:
            self._same_as = found
            return
        for slot in [slot for slot in self._same_as if slot not in found]:
            self._rows.copy(self._same_as.pop(slot), slot)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a pass: read the masks the model is called with."""
        if self._paused:
            return
        given = _named(module, args, kwargs)
        tensors = {key: value for key, value in given.items() if isinstance(value, Tensor)}
        labels = tensors.get("labels")
        decoder = tensors.get("decoder_attention_mask")
        if decoder is None and self._two_towers and labels is not None and labels.ndim == 2:
            decoder = labels != IGNORED_LABEL
        mask = tensors.get("attention_mask")
        masks = {"": mask if mask is not None and mask.ndim == 2 else None, "decoder": decoder}
        named = (tensors.get(key) for key in ("input_ids", "inputs_embeds", "attention_mask", "decoder_input_ids"))
        shapes = [
            (value.shape[0], value.shape[1]) for value in [*named, decoder] if value is not None and value.ndim > 1
        ]
        self._pass, self._running = _Pass(masks, frozenset(shapes)), True

    def _after(self, *_: Any) -> None:
        """End the pass: what blocks do from now on is recomputation.  After an error it is not called."""
        self._running = False

    def _input_hook(self, index: int) -> Any:
        """Return the hook that takes a block's first input."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            taken = self._pass
            if taken is None or not self._running or (index, 0) in taken.pooled:
                return
            states = _first_tensor(kwargs["hidden_states"] if "hidden_states" in kwargs else [*args, *kwargs.values()])
            self._take(taken, index, 0, states)

        return hook

    def _output_hook(self, index: int) -> Any:
        """Return the hook that takes a block's last output."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if self._pass is not None and self._running:
                self._take(self._pass, index, 1, _first_tensor(output))

        return hook

    def _take(self, taken: _Pass, index: int, side: int, states: Tensor | None) -> None:
        """Pool one end of one block."""
        block = self.blocks[index]
        if states is None:
            raise ProfileError(f"block {block.name!r} takes or returns no tensor; leave its targets out")
        last = taken.last
        # Inference tensors count no changes in place, so they are pooled again.
        version = -1 if states.is_inference() else states._version
        if side == 0 and last is not None and last[0]() is states and last[1] == version >= 0:
            taken.pooled[index, side] = last[2]
            return
        pooled = self._pooled(states, block, taken)
        taken.pooled[index, side] = pooled
        if side == 1:
            taken.last = (weakref.ref(states), version, pooled)

    def _pooled(self, states: Tensor, block: Block, taken: _Pass) -> Tensor:
        """Return one row per example, detached."""
        states = states.detach()
        if states.ndim != 3:
            raise ProfileError(
                f"the states of block {block.name!r} are {list(states.shape)}, not [examples, positions, width]; leave "
                f"{'its stack ' + repr(block.stack) if block.stack else 'its targets'} out of the placement"
            )
        mask = None
        if block.stack not in _NO_TOKENS:
            mask = taken.masks["decoder" if self._two_towers and block.stack == "decoder" else ""]
            states = self._batch_first(states, mask, taken)
            if mask is not None and tuple(mask.shape) != tuple(states.shape[:2]):
                raise ProfileError(
                    f"the states of block {block.name!r} are {list(states.shape)} and the mask of real tokens is "
                    f"{list(mask.shape)}; leave the targets of this stack out of the placement"
                )
        return pool(states, mask, self.pooling)

    def _batch_first(self, states: Tensor, mask: Tensor | None, taken: _Pass) -> Tensor:
        """Return ``[n, t, h]``, turning round what a time-first model holds as ``[t, n, h]``."""
        shape = (int(states.shape[0]), int(states.shape[1]))
        known = {(int(mask.shape[0]), int(mask.shape[1]))} if mask is not None else taken.sizes
        turned = self._time_first or (shape not in known and shape[::-1] in known)
        return states.transpose(0, 1) if turned else states


@dataclass(frozen=True)
class States:
    """Pooled states at both ends of every block.

    Attributes:
        blocks: The blocks in the model's order.
        examples: Rows of every array, N; row n belongs to the same example everywhere.
    """

    blocks: tuple[Block, ...]
    examples: int
    _rows: RowFiles
    _same_as: Mapping[int, int]

    def slot(self, block: int, side: int) -> int:
        """Return a number that two ends share exactly when they hold the same states.

        Args:
            block: Index into ``blocks``.
            side: 0 for the input, 1 for the output.

        Returns:
            The number.
        """
        own = 2 * block + side
        return self._same_as.get(own, own)

    def array(self, block: int, side: int) -> np.ndarray:
        """Return the states at one end.

        Args:
            block: Index into ``blocks``.
            side: 0 for the input, 1 for the output.

        Returns:
            float32 ``[N, h]``, read-only; mapped from a file where rows were spilled.
        """
        return self._rows.array(self.slot(block, side))


def _named(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by name."""
    if not args:
        return kwargs
    try:
        return dict(inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments)
    except TypeError:
        return kwargs  # the call itself will say what is wrong with it


def _first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor of an output or of a list of arguments."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((item for item in value if isinstance(item, Tensor)), None)
    return None
