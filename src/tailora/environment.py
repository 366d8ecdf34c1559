"""What a run's numbers depend on besides its configuration; nothing that names a person, a machine or a path."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

PACKAGES = ("tailora", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors", "numpy")
"""The packages whose version can change a result."""


def environment() -> dict[str, Any]:
    """Describe the software and hardware.

    Returns:
        JSON-ready dict: ``python``, ``packages`` (name -> version, ``None`` when absent), ``platform``, ``cpu_count``,
        ``devices`` (names of the accelerators), and ``flags`` (threads and determinism settings).
    """
    import torch

    devices = []
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    elif torch.backends.mps.is_available():
        devices = ["mps"]
    return {
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "packages": {name: _version(name) for name in PACKAGES},
        # Not platform.platform() or node(): a kernel build or host name says who runs it.
        "platform": f"{platform.system()}-{platform.machine()}",
        "cpu_count": os.cpu_count(),
        "devices": devices,
        "cuda": torch.version.cuda,
        "flags": {
            "threads": torch.get_num_threads(),
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "float32_matmul_precision": _float32_precision(),
            "hash_seed": os.environ.get("PYTHONHASHSEED"),
        },
    }


def _float32_precision() -> str:
    """Return the precision of float32 products, in the older words or, where a program set the newer ones, in those."""
    import torch

    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        cpu: Any = torch.backends.mkldnn
        return f"cuda {torch.backends.cuda.matmul.fp32_precision}, cpu {cpu.matmul.fp32_precision}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
