"""Bottleneck adapters for peft: Houlsby et al. 2019 (arXiv 1902.00751) and Pfeiffer et al. 2021 (arXiv 2005.00247).

Importing this package makes the method known to peft, so that ``get_peft_model``, ``PeftModel.from_pretrained``,
``save_pretrained`` and the rest work with a ``BottleneckConfig`` as with any of peft's own.
"""

from __future__ import annotations

from tailora.bottleneck.config import BottleneckConfig, BottleneckType
from tailora.bottleneck.layer import BottleneckLayer
from tailora.bottleneck.model import BottleneckModel
from tailora.bottleneck.places import bottleneck_parameters, bottleneck_sizes
from tailora.bottleneck.registration import register

register(BottleneckType.BOTTLENECK, BottleneckConfig, BottleneckModel)

__all__ = [
    "BottleneckConfig",
    "BottleneckLayer",
    "BottleneckModel",
    "BottleneckType",
    "bottleneck_parameters",
    "bottleneck_sizes",
]
