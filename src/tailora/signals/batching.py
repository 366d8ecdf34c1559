"""Rows of batches: take some, cut their padding, and put rows of like length together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tailora.errors import UserError

Batch = Mapping[str, Any]
"""What a model is called with: names to tensors, the first axis is the examples."""

MASK = "attention_mask"
PADDED_WITH = {"attention_mask": 0, "decoder_attention_mask": 0, "labels": -100, "token_type_ids": 0}
"""Values that mean padding whatever the tokenizer; other keys take the value their own padding holds."""
ALONG_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "labels", "inputs_embeds", "bbox")
"""Keys whose second axis is known to be the tokens that ``attention_mask`` speaks of."""
_GRIDS = ("image_grid_thw", "video_grid_thw")
ALONG_DECODER = ("labels", "decoder_input_ids", "decoder_attention_mask")


def count_examples(batch: Batch) -> int:
    """Return the number of examples in a batch.

    Args:
        batch: A batch.

    Returns:
        Length of the first axis of its labels, inputs or first tensor.

    Raises:
        UserError: It holds no tensor.
    """
    for key in ("labels", "input_ids", "inputs_embeds", "pixel_values"):
        if isinstance(batch.get(key), Tensor) and batch[key].ndim:
            return len(batch[key])
    for value in batch.values():
        if isinstance(value, Tensor) and value.ndim:
            return len(value)
    raise UserError(f"a calibration batch holds no tensor (keys: {', '.join(batch) or 'none'}); give dicts of tensors")


def checked(batches: Iterable[Any]) -> Iterator[Batch]:
    """Go through batches and refuse what is none, before a model stumbles over it.

    Args:
        batches: What the caller gave.

    Yields:
        Dicts with at least one example; with labels where those before have them.

    Raises:
        UserError: Something else is there.
    """
    if isinstance(batches, Mapping | Tensor | str):
        kind = "one dict" if isinstance(batches, Mapping) else f"a {type(batches).__name__}"
        raise UserError(f"batches is {kind}; give a list of dicts of tensors that the model is called with")
    labelled = False
    for number, batch in enumerate(batches):
        if not isinstance(batch, Mapping):
            raise UserError(f"calibration batch number {number} is a {type(batch).__name__}; give dicts of tensors")
        if not count_examples(batch):
            raise UserError(f"calibration batch number {number} has no example; leave it out")
        has = batch.get("labels") is not None
        if labelled and not has:
            raise UserError(f"calibration batch number {number} has no labels, unlike those before; give it some")
        labelled = has
        yield batch


def refuse_uneven(batch: Batch, image_token: int | None) -> None:
    """Refuse rows of which some have an image and others none, where images are as many as rows all the same.

    Then one row has several images, and image n is not row n's.

    Args:
        batch: A batch.
        image_token: The id that stands for an image in ``input_ids``; ``None`` for models without one.

    Raises:
        UserError: It is so.
    """
    ids, pixels = batch.get("input_ids"), batch.get("pixel_values")
    if (
        any(key in batch for key in _GRIDS)
        or image_token is None
        or not isinstance(ids, Tensor)
        or not isinstance(pixels, Tensor)
        or len(ids) < 2
    ):
        return
    without = int((~(ids == image_token).flatten(1).any(dim=1)).sum())
    if without and len(pixels) == len(ids):
        raise UserError(
            f"a calibration batch of {len(ids)} examples has {len(pixels)} images and {without} rows without any, so "
            "that its images cannot be told apart by examples; give batches of one example"
        )


def refuse_flattened(batch: Batch) -> None:
    """Refuse several examples whose image patches lie one after the other along one axis, as Qwen2-VL takes them.

    Nothing in such a batch says which image belongs to which row, and its patches may be as many as its rows by chance.

    Args:
        batch: A batch.

    Raises:
        UserError: It holds ``image_grid_thw`` or ``video_grid_thw`` and more than one example.
    """
    grid = next((key for key in _GRIDS if isinstance(batch.get(key), Tensor)), None)
    if grid is not None and (size := count_examples(batch)) > 1:
        raise UserError(
            f"a calibration batch of {size} examples holds {grid!r}: its patches lie along one axis and cannot be "
            "taken apart by examples; give batches of one example"
        )


def take_rows(batch: Batch, rows: Sequence[int]) -> dict[str, Any]:
    """Return some examples of a batch as a batch of their own.

    Args:
        batch: A batch.
        rows: Which examples.

    Returns:
        A new dict; tensors of first axis 1 (or none) are shared by all examples and handed on as they are.

    Raises:
        UserError: A tensor's first axis is neither the examples nor 1, so that it cannot be told whose rows are whose.
    """
    refuse_flattened(batch)
    size = count_examples(batch)
    taken: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, Tensor) and value.ndim and len(value) == size:
            taken[key] = value[list(rows)]
        elif isinstance(value, Tensor) and value.ndim and len(value) != 1:
            raise UserError(
                f"{key!r} has shape {list(value.shape)} in a batch of {size} examples, which cannot be taken apart; "
                "give batches of one example"
            )
        elif isinstance(value, list | tuple) and len(value) == size:
            taken[key] = [value[row] for row in rows]
        else:
            taken[key] = value
    return taken


def real_lengths(batch: Batch) -> Tensor | None:
    """Return how long each example is without its right padding.

    Counted labels are never padding: an example reaches at least to its last counted label of the same axis.

    Args:
        batch: A batch.

    Returns:
        int64 ``[n]``, or ``None`` where there is no 2-D ``attention_mask`` or the padding is not on the right.
    """
    mask = batch.get(MASK)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or not mask.shape[1]:
        return None
    mask = mask != 0
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        return None
    lengths = mask.sum(dim=1)
    labels = batch.get("labels")
    if isinstance(labels, Tensor) and labels.shape == mask.shape and not labels.is_floating_point():
        places = torch.arange(1, mask.shape[1] + 1, device=labels.device)
        lengths = torch.maximum(lengths, ((labels != -100) * places).amax(dim=1).to(lengths.device))
    return lengths.clamp(min=1)


def trim(batch: Batch) -> dict[str, Any]:
    """Cut the right padding that all examples of a batch share.

    Args:
        batch: A batch.

    Returns:
        A new dict; the batch as it is where it has no right padding or a tensor that no rule is known for.
    """
    lengths = real_lengths(batch)
    if lengths is None:
        return dict(batch)
    full, longest = batch[MASK].shape[1], int(lengths.max())
    keys = _token_keys(batch, full)
    if keys is None or longest == full:
        return dict(batch)
    return {key: value[:, :longest] if key in keys else value for key, value in batch.items()}


def sort_by_length(batches: Iterable[Batch], batch_size: int, *, pad_token_id: int | None = None) -> list[Batch]:
    """Regroup the examples of padded batches by their length and cut the padding.

    Most of a padded batch of natural text is padding, so this is worth about as much as batching itself.  A mean over
    examples does not depend on their order.  All batches are held at once.

    Args:
        batches: Dicts of tensors with ``attention_mask [n, tokens]`` and right padding.
        batch_size: Examples per new batch; the last one may be smaller.
        pad_token_id: What ``input_ids`` are padded with; found in the batches' own padding if they have any.

    Returns:
        New batches, the longest examples first (so that too little memory shows at once), ties in the given order.
        Batches without ``attention_mask`` are returned as they came.

    Raises:
        UserError: The padding is not on the right, or a tensor cannot be cut or regrouped.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; give at least 1")
    given = list(batches)
    if all(batch.get(MASK) is None for batch in given):
        return given
    rows: list[dict[str, Tensor]] = []
    padding: dict[str, float] = {} if pad_token_id is None else {"input_ids": pad_token_id}
    for number, batch in enumerate(given):
        if given[0].keys() != batch.keys():
            raise UserError(
                f"batch number {number} has the keys {', '.join(batch)} and the first one {', '.join(given[0])}; "
                "batches that are regrouped need the same keys"
            )
        rows.extend(_split(batch, number, padding))
    order = sorted(range(len(rows)), key=lambda index: -_length(rows[index]))
    return [
        _join([rows[index] for index in order[start : start + batch_size]], padding)
        for start in range(0, len(order), batch_size)
    ]


def _length(row: dict[str, Tensor]) -> int:
    """Return what a row costs: its tokens, of the encoder and the decoder."""
    return sum(len(row[key]) for key in (MASK, "decoder_input_ids", "labels") if key in row and row[key].ndim)


def _split(batch: Batch, number: int, padding: dict[str, float]) -> Iterator[dict[str, Tensor]]:
    """Yield the rows of a batch without their padding, and note what the padding was."""
    lengths = real_lengths(batch)
    if lengths is None:
        raise UserError(
            f"batch number {number} is not padded on the right (its attention_mask is not ones, then zeros); set the "
            "tokenizer's padding_side='right', or leave the batches unsorted"
        )
    keys = _token_keys(batch, batch[MASK].shape[1])
    size = count_examples(batch)
    unfit = next((k for k, v in batch.items() if not (isinstance(v, Tensor) and v.ndim and len(v) == size)), None)
    if keys is None or unfit is not None:
        shown = unfit or next(key for key in batch if _odd(batch, key, batch[MASK].shape[1]))
        raise UserError(f"{shown!r} of batch number {number} cannot be regrouped by length; leave the batches unsorted")
    hidden = batch[MASK] == 0
    for key in keys:
        if key not in PADDED_WITH and key not in padding and hidden.any() and batch[key].ndim == 2:
            padding[key] = batch[key][hidden][0].item()
    for row in range(size):
        yield {k: v[row, : int(lengths[row])] if k in keys else v[row] for k, v in batch.items()}


def _join(rows: list[dict[str, Tensor]], padding: dict[str, float]) -> dict[str, Tensor]:
    """Pad rows to their longest and stack them."""
    joined: dict[str, Tensor] = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        if values[0].ndim and len({value.shape for value in values}) > 1:
            longest = max(len(value) for value in values)
            fill = PADDED_WITH.get(key, padding.get(key, 0))
            values = [
                torch.cat([value, value.new_full((longest - len(value), *value.shape[1:]), fill)]) for value in values
            ]
        joined[key] = torch.stack(values)
    return joined


def _odd(batch: Batch, key: str, tokens: int) -> bool:
    """Tell whether a tensor may run along the tokens although no rule is known for it."""
    value = batch[key]
    known = key in ALONG_TOKENS or key in ALONG_DECODER
    return isinstance(value, Tensor) and value.ndim >= 2 and tokens in value.shape[1:] and not known


def _token_keys(batch: Batch, tokens: int) -> set[str] | None:
    """Return the keys that are cut along with the mask, or ``None`` where it cannot be told."""
    if any(_odd(batch, key, tokens) for key in batch):
        return None
    keys = {
        key
        for key in ALONG_TOKENS
        if isinstance(batch.get(key), Tensor) and batch[key].ndim >= 2 and batch[key].shape[1] == tokens
    }
    # With the decoder's inputs given, labels belong to them and not to the encoder's tokens.
    return keys - {"labels"} if "decoder_input_ids" in batch else keys
