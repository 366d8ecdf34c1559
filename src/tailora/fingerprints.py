"""Short, stable marks of models and data, so that results say what they were measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tailora.artifacts import canonical_json
from tailora.offloaded import known_parameters, own_parameter
from tailora.packed import stored_tensors

_SAMPLED = 64


def model_fingerprint(model: nn.Module) -> str:
    """Return a SHA-256 (hex) of a model's architecture and a sample of its weights.

    Every parameter's name, shape and dtype counts, and up to 64 evenly spaced values of it: cheap even for large
    models, and two different checkpoints of one architecture do not share it.  Quantised weights count with their codes
    and their scales.

    Args:
        model: The model; parameters that accelerate keeps elsewhere are fetched, others on the meta device count by
            shape alone.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    modules = dict(model.named_modules())
    for name, held in known_parameters(model):
        parameter: Any = own_parameter(modules, name, held)
        for part, tensor in stored_tensors(name, parameter, modules):
            digest.update(canonical_json([part, list(tensor.shape), str(tensor.dtype)]).encode())
            if tensor.device.type == "meta" or not tensor.numel():
                continue
            flat = tensor.detach().reshape(-1)
            places = torch.linspace(0, flat.numel() - 1, min(_SAMPLED, flat.numel()), dtype=torch.float64).long()
            sample = flat[places.to(flat.device)]
            sample = sample.double() if sample.is_floating_point() else sample.long()
            digest.update(sample.cpu().numpy().tobytes())
    return digest.hexdigest()


class DataFingerprint:
    """A running SHA-256 over calibration batches."""

    def __init__(self) -> None:
        """Start empty."""
        self._digest = hashlib.sha256()

    def update(self, batch: Mapping[str, Any]) -> None:
        """Take in one batch: names, shapes, dtypes and contents of its tensors, other values by their text."""
        for key in sorted(batch):
            value = batch[key]
            if isinstance(value, Tensor):
                host = value.detach().cpu().contiguous()
                self._digest.update(canonical_json([key, list(host.shape), str(host.dtype)]).encode())
                self._digest.update(host.reshape(-1).view(torch.uint8).numpy().tobytes() if host.numel() else b"")
            else:
                self._digest.update(f"{key}={value!r}".encode())

    def hexdigest(self) -> str:
        """Return 64 hexadecimal digits."""
        return self._digest.hexdigest()
