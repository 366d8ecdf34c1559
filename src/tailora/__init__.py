"""Tailora: LoRA, cut to fit.

Where LoRA goes, how much rank each matrix gets and which adapter parameters train, under an exact budget of trainable
parameters.  The public names below are imported on first use, so that ``import tailora`` (and ``tailora --help``) does
not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tailora._version import __version__

if TYPE_CHECKING:
    from tailora.bottleneck import BottleneckConfig as BottleneckConfig
    from tailora.budget import Budget as Budget
    from tailora.geometry import intrinsic_dimension as intrinsic_dimension
    from tailora.masks import FisherMask as FisherMask
    from tailora.masks import fisher_mask as fisher_mask
    from tailora.plans import Plan as Plan
    from tailora.plans import plan as plan
    from tailora.profiles import Profile as Profile
    from tailora.profiles import profile as profile
    from tailora.targets import Target as Target
    from tailora.targets import find_targets as find_targets
    from tailora.unipelt import UniPELTConfig as UniPELTConfig

_HOMES = {
    "BottleneckConfig": "tailora.bottleneck",
    "Budget": "tailora.budget",
    "FisherMask": "tailora.masks",
    "Plan": "tailora.plans",
    "plan": "tailora.plans",
    "Profile": "tailora.profiles",
    "profile": "tailora.profiles",
    "Target": "tailora.targets",
    "UniPELTConfig": "tailora.unipelt",
    "find_targets": "tailora.targets",
    "fisher_mask": "tailora.masks",
    "intrinsic_dimension": "tailora.geometry",
}

__all__ = [
    "BottleneckConfig",
    "Budget",
    "FisherMask",
    "Plan",
    "Profile",
    "Target",
    "UniPELTConfig",
    "__version__",
    "find_targets",
    "fisher_mask",
    "intrinsic_dimension",
    "plan",
    "profile",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tailora' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
