"""What commands print: data on stdout, talk on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def out() -> Console:
    """Return a console on stdout for tables."""
    from rich.console import Console

    return Console(highlight=False)


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr)
