"""How numbers are written, the same in the terminal, in Markdown and on the page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

DASH = "–"
MINUS = "\N{MINUS SIGN}"


def score(value: float | None) -> str:
    """Write a score or loss: four decimals below ten, fewer above."""
    if value is None:
        return DASH
    size = abs(value)
    text = f"{value:.4f}" if size < 10 else f"{value:.2f}" if size < 10_000 else f"{value:.3g}"
    return text.replace("-", MINUS)


def number(value: float) -> str:
    """Write any number to four significant digits, ``3.136e−5`` where it is tiny or huge."""
    return re.sub(r"e([+-])0*", r"e\1", f"{value:.4g}").replace("e+", "e").replace("-", MINUS)


def signed(value: float | None) -> str:
    """Write a difference with its sign."""
    if value is None:
        return DASH
    return f"+{score(value)}" if value > 0 else score(value + 0.0)


def count(value: float | None) -> str:
    """Write a whole number with thousands separators."""
    return DASH if value is None else f"{value:,.0f}"


def share(percent: float | None) -> str:
    """Write a percentage to two decimals, or two significant digits when it is tiny."""
    if percent is None:
        return DASH
    return f"{percent:.2f} %" if percent >= 0.095 or percent == 0 else f"{percent:.2g} %"


def trained(plan: Mapping[str, Any]) -> str:
    """Say how many parameters a plan trains, and of how many where a mask chooses.

    Args:
        plan: A plan's content, as its JSON file holds it.

    Returns:
        Such as ``1,024 parameters`` or ``1,024 of an adapter's 2,048 parameters``.
    """
    total, kept = plan.get("total_params"), plan.get("kept_params")
    if kept is None:
        return f"{count(total)} parameters"
    whole = sum(target["cost"] for target in plan["targets"])
    return f"{count(total)} of an adapter's {count(whole)} parameters"


def seconds(value: float | None) -> str:
    """Write a duration in seconds, minutes or hours."""
    if value is None:
        return DASH
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def megabytes(value: float | None) -> str:
    """Write a memory size."""
    if value is None:
        return DASH
    return f"{value:,.0f} MB" if value < 10_000 else f"{value / 1024:,.1f} GB"


def rate(value: float | None) -> str:
    """Write a learning rate."""
    return DASH if value is None else f"{value:g}".replace("-", MINUS)


def with_spread(mean: float, spread: float | None) -> str:
    """Write a mean with its standard deviation over seeds."""
    return score(mean) if spread is None else f"{score(mean)} ± {score(spread)}"


def plural(number: int, word: str) -> str:
    """Write ``1 run``, ``2 runs``."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def series(words: list[str]) -> str:
    """Join words with commas and a final ``and``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
