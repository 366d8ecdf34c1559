"""UniPELT for peft: gated LoRA, prefix tuning and bottleneck adapter in one (Mao et al. 2022, arXiv 2110.07577).

Importing this package makes the method known to peft, so that ``get_peft_model``, ``PeftModel.from_pretrained``,
``save_pretrained`` and the rest work with a ``UniPELTConfig`` as with any of peft's own.
"""

from __future__ import annotations

from tailora.bottleneck.registration import register
from tailora.unipelt.attention import register_attention
from tailora.unipelt.config import UniPELTConfig, UniPELTType
from tailora.unipelt.layer import UniPELTLayer
from tailora.unipelt.model import UniPELTModel
from tailora.unipelt.places import unipelt_parameters

register(UniPELTType.UNIPELT, UniPELTConfig, UniPELTModel)
register_attention()

__all__ = ["UniPELTConfig", "UniPELTLayer", "UniPELTModel", "UniPELTType", "unipelt_parameters"]
