"""The entries in peft's tables that make the method known to it."""

from __future__ import annotations

from typing import Any

from peft import mapping

from tailora.errors import TailoraError
from tailora.unipelt.attention import register_attention
from tailora.unipelt.config import UniPELTConfig, UniPELTType
from tailora.unipelt.model import UniPELTModel


def register() -> None:
    """Make the method known: three entries in peft's tables, and the attention function in transformers' own.

    A second call changes nothing.  peft's own ``register_peft_method`` makes the same three entries, but only for
    members of its closed ``PeftType``.

    Raises:
        TailoraError: peft, or another package, has a method of this name.
    """
    kind = UniPELTType.UNIPELT
    tables: Any = mapping
    entries = (
        (tables.PEFT_TYPE_TO_CONFIG_MAPPING, UniPELTConfig),
        (tables.PEFT_TYPE_TO_TUNER_MAPPING, UniPELTModel),
        (tables.PEFT_TYPE_TO_PREFIX_MAPPING, UniPELTModel.prefix),
    )
    for table, value in entries:
        if table.setdefault(kind, value) is not value:
            raise TailoraError(
                f"peft already has a method called {kind.value!r} ({table[kind]!r}); load adapters of that method and "
                "of Tailora's in different processes"
            )
    register_attention()
