"""Fisher masks: only the adapter's most informative parameters train, the rest stays as it is bit for bit."""

from __future__ import annotations

from tailora.masks.mask import FisherMask
from tailora.masks.optimizer import MaskedOptimizer
from tailora.masks.scoring import fisher_mask

__all__ = ["FisherMask", "MaskedOptimizer", "fisher_mask"]
