"""The entries in peft's tables that make the method known to it."""

from __future__ import annotations

from typing import Any

from peft import mapping

from tailora.bottleneck.config import BottleneckConfig, BottleneckType
from tailora.bottleneck.model import BottleneckModel
from tailora.errors import TailoraError


def register() -> None:
    """Enter the configuration, the model and the name prefix into peft's tables; a second call changes nothing.

    peft's own ``register_peft_method`` makes the same three entries, but only for members of its closed ``PeftType``.

    Raises:
        TailoraError: peft, or another package, has a method of this name.
    """
    kind = BottleneckType.BOTTLENECK
    tables: Any = mapping
    entries = (
        (tables.PEFT_TYPE_TO_CONFIG_MAPPING, BottleneckConfig),
        (tables.PEFT_TYPE_TO_TUNER_MAPPING, BottleneckModel),
        (tables.PEFT_TYPE_TO_PREFIX_MAPPING, BottleneckModel.prefix),
    )
    for table, value in entries:
        if table.setdefault(kind, value) is not value:
            raise TailoraError(
                f"peft already has a method called {kind.value!r} ({table[kind]!r}); load adapters of that method and "
                "of Tailora's in different processes"
            )
