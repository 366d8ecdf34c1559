"""The entries in peft's tables that make a method known to it."""

from __future__ import annotations

import enum
from typing import Any

from peft import mapping

from tailora.errors import TailoraError


def register(kind: enum.Enum, config: type, model: Any) -> None:
    """Enter a configuration, a model and its name prefix into peft's tables; a second call changes nothing.

    peft's own ``register_peft_method`` makes the same three entries, but only for members of its closed ``PeftType``.

    Args:
        kind: The method, a member of a string enumeration.
        config: Its configuration class.
        model: Its tuner class.

    Raises:
        TailoraError: peft, or another package, has a method of this name.
    """
    tables: Any = mapping
    entries = (
        (tables.PEFT_TYPE_TO_CONFIG_MAPPING, config),
        (tables.PEFT_TYPE_TO_TUNER_MAPPING, model),
        (tables.PEFT_TYPE_TO_PREFIX_MAPPING, model.prefix),
    )
    for table, value in entries:
        if table.setdefault(kind, value) is not value:
            raise TailoraError(
                f"peft already has a method called {kind.value!r} ({table[kind]!r}); load adapters of that method and "
                "of Tailora's in different processes"
            )
