"""Turn pydantic's findings into one sentence that names the key, the value and the way out."""

from __future__ import annotations

import re
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from tailora.errors import did_you_mean


def first_problem(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """Return a sentence on the first thing that is wrong.

    Args:
        error: What pydantic found.
        model: The model that was validated, to suggest keys.
        where: Which file or argument it was, for the sentence.

    Returns:
        One sentence.
    """
    first = error.errors()[0]
    # Validators and the branches of a union add their names to the location; the user wrote only the key.
    location = tuple(part for part in first["loc"] if not str(part).startswith("function-"))
    key = re.sub(r"\.(str|int|float|bool|nullable.*)$", "", ".".join(str(part) for part in location))
    message = str(first["msg"]).removeprefix("Value error, ")
    value = first["input"]
    shown = type(value).__name__ if isinstance(value, dict | list) else repr(value)
    if first["type"] == "extra_forbidden":
        known = _fields(model, location[:-1])
        hint = did_you_mean(str(location[-1]), known) or f"; known: {', '.join(sorted(known))}"
        return f"{where}: unknown key {key!r}{hint}"
    if first["type"] == "missing":
        return f"{where}: {key!r} is missing; add it"
    if first["type"] in ("model_type", "model_attributes_type"):
        return f"{where}: {key}={shown} must be a section with the keys {', '.join(sorted(_fields(model, location)))}"
    # A check of several keys together names them itself.
    if not location or (
        first["type"] == "value_error" and message.startswith(tuple(f"{k}." for k in model.model_fields))
    ):
        return f"{where}: {message}"
    hint = ""
    if first["type"] == "literal_error" and isinstance(value, str):
        hint = did_you_mean(value, re.findall(r"'([^']+)'", message))
    message = (message[:1].lower() + message[1:]).replace("input should", "it should", 1)
    return f"{where}: {key}={shown} cannot be used: {message}{hint}"


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
