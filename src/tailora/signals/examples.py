"""What the rows of a batch are: how many, which half of the data each belongs to, which positions are real."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tailora.errors import UserError
from tailora.offloaded import input_device
from tailora.signals.batching import ALONG_TOKENS, count_examples, take_rows
from tailora.targets import Target

LOSS_PREFIX = "loss_"
"""Entries of a batch whose names begin so are for the loss alone; the model is not called with them."""


def for_model(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the model is called with.

    Args:
        batch: The batch.

    Returns:
        All entries but those for the loss alone.
    """
    return {key: value for key, value in batch.items() if not key.startswith(LOSS_PREFIX)}


def example_of(batch: Mapping[str, Any], number: int, rows: int) -> dict[str, Any]:
    """Return one example as a batch of its own.

    Args:
        batch: The batch.
        number: Which example.
        rows: How many rows make one; they stand together.

    Returns:
        A new dict.

    Raises:
        UserError: A tensor cannot be taken apart.
    """
    model = for_model(batch)
    examples = count_examples(model) // rows
    taken = take_rows(model, range(number * rows, (number + 1) * rows))
    for key, value in batch.items():
        if key.startswith(LOSS_PREFIX):
            one_each = isinstance(value, Tensor) and value.ndim and len(value) == examples
            several = isinstance(value, Tensor) and value.ndim and len(value) == examples * rows
            if one_each:
                taken[key] = value[number : number + 1]
            else:
                taken[key] = value[number * rows : (number + 1) * rows] if several else value
    return taken


def on_device(batch: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return the batch with its tensors on the device of the model's first parameter that is on one.

    Args:
        batch: The batch.
        model: The model.

    Returns:
        A new dict.
    """
    device = input_device(model)

    def moved(value: Tensor) -> Tensor:
        value = value.to(device)
        if value.requires_grad:
            return value.detach().requires_grad_()  # a leaf of ours, so that the caller's own gets no gradient
        return value.clone() if value.is_inference() else value  # what inference mode made takes no part in a graph

    return {key: moved(value) if isinstance(value, Tensor) else value for key, value in batch.items()}


def digests(batch: Mapping[str, Any], size: int, examples: int) -> list[int]:
    """Return one number per example that depends on its own content and nothing else.

    Padding does not count, so an example keeps its number whoever else is in its batch.

    Args:
        batch: The batch.
        size: Its rows.
        examples: Its examples; their rows stand together.

    Returns:
        64-bit numbers.
    """
    host = {
        key: value.detach().cpu()
        for key, value in sorted(batch.items())
        if isinstance(value, Tensor) and value.ndim and len(value) == size and "mask" not in key
    }
    masks = dict.fromkeys(ALONG_TOKENS, batch.get("attention_mask")) | {
        "decoder_input_ids": batch.get("decoder_attention_mask"),
        "labels": None,  # they know their own padding
    }
    found, rows = [], size // examples
    for example in range(examples):
        digest = hashlib.blake2b(digest_size=8)
        for key, value in host.items():
            part = value[example * rows : (example + 1) * rows]
            mask = masks.get(key)
            if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape == value.shape[:2]:
                part = part[mask.detach().cpu()[example * rows : (example + 1) * rows].bool()]
            elif key == "labels" and not part.is_floating_point():
                part = part[part != -100]
            digest.update(key.encode() + part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        found.append(int.from_bytes(digest.digest(), "big") >> 1)
    return found


def halves_of(numbers: Iterable[int]) -> Tensor:
    """Return which half of the data examples belong to.

    By content: an example that occurs twice stays in one half, and neither order, batches nor processes matter.

    Args:
        numbers: What ``digests`` returned.

    Returns:
        0 or 1 per example, int64 on the host.
    """
    return torch.tensor([number & 1 for number in numbers], dtype=torch.int64)


def halves_together(batch: dict[str, Any], size: int) -> tuple[dict[str, Any], list[int], list[int]]:
    """Return a batch with the rows of each half of the data together.

    Sums over a half are then taken over one stretch of memory, without a copy.

    Args:
        batch: The batch; every row is an example.
        size: Its rows.

    Returns:
        A batch, where each of its rows was, and what ``digests`` says of it; as it is where rows cannot be moved.
    """
    places = list(range(size))
    numbers = digests(batch, size, size)
    halves = halves_of(numbers).tolist()
    order = sorted(places, key=halves.__getitem__)
    if order == places:
        return batch, places, numbers
    try:
        taken = take_rows(batch, order)
    except UserError:
        return batch, places, numbers
    for key, value in taken.items():
        if isinstance(value, Tensor) and value.requires_grad:
            taken[key] = value.detach().requires_grad_()  # a leaf, so that it can be sent back through more than once
    return taken, order, [numbers[row] for row in order]


def real_positions(batch: Mapping[str, Any], target: Target, examples: int, length: int) -> Tensor | None:
    """Return which positions of a target's input are tokens rather than padding.

    Args:
        batch: The batch.
        target: Whose input; decoders of encoder-decoder models have a mask of their own.
        examples: Number of examples; the rows that make one stand together.
        length: Positions per example of one call's input.

    Returns:
        bool ``[examples, length]``, or ``None`` where the batch has no mask of that length: every position then counts.
    """
    reads_encoder = target.cross_attention and target.role in ("attention.key", "attention.value", "attention.qkv")
    if target.stack == "vision":
        mask = None
    elif target.stack == "decoder" and not reads_encoder:
        mask = batch.get("decoder_attention_mask")
        labels = batch.get("labels")
        if mask is None and isinstance(labels, Tensor) and labels.ndim == 2:
            mask = labels != -100
    else:
        mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 3) or mask.numel() != examples * length:
        return None
    return mask.bool().reshape(examples, -1)
