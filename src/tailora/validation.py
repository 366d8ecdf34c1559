"""Turn pydantic's findings into one sentence that names the key, the value and the way out."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from tailora.errors import did_you_mean


def first_problem(error: ValidationError, model: type[BaseModel], place: str) -> str:
    """Return a sentence on the first thing that is wrong.

    Args:
        error: What pydantic found.
        model: The model that was validated, to suggest keys.
        place: Which file or argument it was, for the sentence.

    Returns:
        One sentence.
    """
    found = error.errors()[0]
    key = ".".join(str(part) for part in found["loc"] if not _is_tag(part)) or "the whole"
    if found["type"] == "extra_forbidden":
        fields = _fields(model, found["loc"][:-1])
        hint = did_you_mean(str(found["loc"][-1]), fields) or ";"
        return f"unknown key {key!r} in {place}{hint} known here: {', '.join(sorted(fields))}"
    if found["type"] == "missing":
        return f"key {key!r} is missing in {place}; add it"
    reason = str(found["msg"]).removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    return f"key {key!r} in {place} is {found['input']!r}: {reason}"


def _is_tag(part: str | int) -> bool:
    """Tell a union member's name, which pydantic mixes into the path, from a key."""
    return isinstance(part, str) and part in {"int", "str", "float", "bool"}


def _fields(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Return the field names of the model reached by following ``path``."""
    current: type[BaseModel] = model
    for part in path:
        if part not in current.model_fields:
            break
        annotation = current.model_fields[part].annotation
        options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
        nested = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not nested:
            break
        current = nested[0]
    return list(current.model_fields)


def _is_union(annotation: Any) -> bool:
    """Tell whether an annotation is ``X | Y``."""
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)
