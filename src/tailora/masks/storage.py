"""Masks and masked adapters as files: positions (or bits, where those are smaller) in safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tailora.artifacts import canonical_json, write_bytes
from tailora.errors import PlanMismatchError, UserError
from tailora.masks.frozen import ZERO, changed, frozen_mark

if TYPE_CHECKING:
    from tailora.masks.mask import FisherMask

MASK_FILE = "fisher_mask.safetensors"
COMPACT_FILE = "compact_adapter.safetensors"
FORMAT = 1


def write(
    path: str | Path,
    default: str,
    positions: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    meta: Mapping[str, Any],
    extra: Mapping[str, Tensor],
) -> Path:
    """Write positions and more; a reader sees the whole file or none.

    Args:
        path: A folder, or a file that ends in ``.safetensors``.
        default: The file's name in a folder.
        positions: Parameter name to kept entries.
        shapes: Parameter name to shape.
        meta: JSON-ready.
        extra: More tensors by key.

    Returns:
        The file.
    """
    from safetensors.torch import save

    file = file_of(path, default)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in extra.items()}
    for name, places in positions.items():
        numel = torch.Size(shapes[name]).numel()
        if 4 * len(places) <= -(-numel // 8):
            tensors[f"index:{name}"] = places.int()
        else:
            marks = np.zeros(numel, dtype=bool)
            marks[places.numpy()] = True
            tensors[f"bits:{name}"] = torch.from_numpy(np.packbits(marks))
    # A list: the order of the parameters is part of the mask, and JSON objects lose it.
    described = {
        "format": FORMAT,
        "shapes": [[name, list(shape)] for name, shape in shapes.items()],
        "meta": dict(meta),
    }
    content = save(tensors, {"tailora": canonical_json(described)})
    return write_bytes(file, content)


def read(
    path: str | Path, default: str
) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]], dict[str, Any], dict[str, Tensor]]:
    """Read what ``write`` wrote.

    Args:
        path: The folder or file.
        default: The file's name in a folder.

    Returns:
        Positions, shapes, meta and the other tensors.

    Raises:
        UserError: There is no such file, or it is not one of ours, or not whole.
    """
    from safetensors import SafetensorError, safe_open

    file = file_of(path, default)
    if not file.is_file():
        raise UserError(f"there is no {file.name!r} in {str(file.parent)!r}; check the path")
    try:
        with safe_open(file, framework="pt") as opened:
            described = json.loads((opened.metadata() or {})["tailora"])
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        if described["format"] != FORMAT:
            raise UserError(f"{str(file)!r} has the format {described['format']}; update tailora to read it")
        shapes = {name: tuple(shape) for name, shape in described["shapes"]}
        positions = {name: _positions(tensors, name, shape) for name, shape in shapes.items()}
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise UserError(
            f"{str(file)!r} is no file of a mask, or not whole ({type(error).__name__}); write it again"
        ) from None
    return positions, shapes, described["meta"], tensors


def write_compact(mask: FisherMask, model: nn.Module, path: str | Path) -> Path:
    """Write the kept entries of a model and what trains in full; see ``FisherMask.save_compact``."""
    parameters = mask.parameters(model)
    frozen = mask.meta.get("frozen", {})
    other = changed(parameters, mask.positions, frozen)
    if other is not None or set(frozen) != set(parameters):
        raise PlanMismatchError(
            f"{other or next(iter(parameters))!r} has changed where the mask freezes it, so a compact file could not "
            "bring it back; save the whole adapter instead"
        )
    extra = {}
    for name, parameter in model.named_parameters():
        if name in parameters:
            places = mask.positions[name].long().to(parameter.device)
            extra[f"kept:{name}"] = parameter.detach().reshape(-1)[places]
        elif parameter.requires_grad:
            extra[f"full:{name}"] = parameter.detach().clone()
    return write(path, COMPACT_FILE, mask.positions, mask.shapes, mask.meta, extra)


def restore_compact(mask: FisherMask, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write the values of a compact file into a model, or refuse before anything is written.

    Args:
        mask: The file's mask.
        model: The model.
        tensors: The file's other tensors.

    Raises:
        PlanMismatchError: The model is not the one that the file completes.
    """
    known = dict(model.named_parameters())
    parameters = mask.parameters(model)
    full = {key.removeprefix("full:"): tensor for key, tensor in tensors.items() if key.startswith("full:")}
    for name, value in [*full.items(), *((name, tensors[f"kept:{name}"]) for name in parameters)]:
        same = name in known and known[name].dtype == value.dtype
        if not same or (name in full and known[name].shape != value.shape):
            raise PlanMismatchError(f"the file's {name!r} does not fit this model; give the model it was written for")
    for name, mark in mask.meta["frozen"].items():
        if mark != ZERO and frozen_mark(parameters[name], mask.positions[name]) != mark:
            raise PlanMismatchError(
                f"the file holds only part of {name!r} and this model has other values in the rest; make the adapter "
                "as it was made then (same configuration, same seed), or load the whole adapter"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            flat = parameter.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
            if mask.meta["frozen"][name] == ZERO:
                flat.zero_()
            flat[mask.positions[name].long().to(flat.device)] = tensors[f"kept:{name}"].to(flat.device)
            parameter.copy_(flat.view(parameter.shape))
        for name, value in full.items():
            known[name].copy_(value)


def file_of(path: str | Path, default: str) -> Path:
    """Return the file that a path means.

    Args:
        path: A folder, or a file that ends in ``.safetensors``.
        default: The file's name in a folder.

    Returns:
        The file.
    """
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / default


def _positions(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """Take the kept entries of one parameter out of the file's tensors."""
    if f"index:{name}" in tensors:
        return tensors.pop(f"index:{name}")
    marks = np.unpackbits(tensors.pop(f"bits:{name}").numpy(), count=torch.Size(shape).numel())
    return torch.from_numpy(np.flatnonzero(marks).astype(np.int32))
