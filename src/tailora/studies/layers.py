"""Partial configurations laid over one another, and the variables in their strings."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from tailora.config_files import copied
from tailora.errors import ConfigError

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^{}]*))?\}")
_DURATIONS = ("max_steps", "num_train_epochs")


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings.

    Mappings are merged key by key; everything else, lists included, is replaced.  ``max_steps`` above replaces
    ``num_train_epochs`` below and the other way round, since a training takes one of them.

    Args:
        below: What holds where ``above`` says nothing; not changed.
        above: What goes before; not changed.

    Returns:
        A new mapping.
    """
    result = {key: copied(value) for key, value in below.items()}
    given = [key for key in _DURATIONS if above.get(key) is not None]
    if len(given) == 1:
        for key in _DURATIONS:
            result.pop(key, None)
    for key, value in above.items():
        held = result.get(key)
        if isinstance(held, Mapping) and isinstance(value, Mapping):
            result[key] = laid_over(held, value)
        else:
            result[key] = copied(value)
    return result


def substituted(value: Any, variables: Mapping[str, str], where: str) -> Any:
    """Put variables into every string of a nested value.

    Args:
        value: The value; not changed.
        variables: Name to text; names that are missing are looked for in the environment.
        where: What it came from, for messages.

    Returns:
        A new value in which ``${NAME}`` and ``${NAME:-default}`` are replaced.

    Raises:
        ConfigError: A name is known nowhere, or a variable contains itself.
    """

    def replaced(text: str, inside: tuple[str, ...]) -> str:
        def one(found: re.Match[str]) -> str:
            name, default = found[1], found[2]
            if name in variables:
                if name in inside:
                    raise ConfigError(f"{where}: the variable {name!r} contains itself; write it out")
                return replaced(variables[name], (*inside, name))
            # An empty variable of the environment counts as missing where there is a default, as in a shell.
            held = os.environ.get(name)
            if default is not None:
                return held or default
            if held is None:
                raise ConfigError(
                    f"{where}: ${{{name}}} is neither in 'variables' nor in the environment; set it, or write "
                    f"${{{name}:-default}}"
                )
            return held

        return _VARIABLE.sub(one, text)

    return _every_string(value, lambda text: replaced(text, ()))


def _every_string(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _every_string(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_every_string(item, change) for item in value]
    return change(value) if isinstance(value, str) else value
