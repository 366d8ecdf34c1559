"""How a profile was measured, in words: from what its ``meta`` records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tailora.report import formats
from tailora.report.content import readable
from tailora.report.records import finite

SETTLED = 0.99
"""Rank correlation with the final ranking from which on it counts as settled."""
NAMED = 12
"""Skipped examples and merged profiles that are named; the others are counted."""


def how_measured(meta: Mapping[str, Any]) -> str:
    """Return what follows "3 signals of 35 targets" in the summary of a profile.

    Args:
        meta: What the profile records.

    Returns:
        The rest of the sentence and, where there is something to know, further sentences.
    """
    text = ""
    examples, batches, skipped = (meta.get(key) for key in ("examples", "batches", "skipped"))
    if examples == 0 and not meta.get("loss"):
        text = ", read from the weights alone"
    elif isinstance(examples, int):
        text = f", measured on {formats.plural(examples, 'example')}"
        text += f" in {formats.plural(batches, 'batch').replace('batchs', 'batches')}" if batches else ""
    text += f", loss {meta['loss']}" if meta.get("loss") else ""
    text += f" ({meta['loss_reduction']})" if meta.get("loss_reduction") else ""
    text += ", labels drawn from the model's own predictions" if meta.get("labels") == "model" else ""
    text += ", in training mode with the model's own dropout" if meta.get("mode") == "train" else ""
    text += f", merged from {formats.plural(len(meta['merged']), 'profile')}" if meta.get("merged") else ""
    sentences = [f"{text}."]
    if isinstance(skipped, list) and skipped:
        verb = "was" if len(skipped) == 1 else "were"
        sentences.append(f"{formats.plural(len(skipped), 'example')} {verb} not finite and left out.")
    if meta.get("one_by_one"):
        sentences.append(f"Examples were taken one at a time: {meta['one_by_one']}.")
    return " ".join(sentences)


def measured_rows(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return everything that a profile records about itself, in words.

    Args:
        meta: What the profile records.

    Returns:
        Name and text, in the profile's order; empty texts are left out.
    """
    rows = [(str(key).replace("_", " "), _WORDS.get(key, readable)(value)) for key, value in meta.items()]
    return [(key, text) for key, text in rows if text]


def calibration_points(meta: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Return the calibration-size curve.

    Args:
        meta: What the profile records.

    Returns:
        Examples, ascending, and the Spearman correlation of the Fisher traces then with those of all examples; empty
        where it was not measured, or measured on one part of a merged profile only.
    """
    points = meta.get("calibration_curve")
    if not isinstance(points, list) or meta.get("merged"):
        return []
    found: dict[int, float] = {}
    for point in points:
        pair = point if isinstance(point, (list, tuple)) and len(point) == 2 else (None, None)
        examples, value = finite(pair[0]), finite(pair[1])
        if examples is not None and value is not None and examples >= 1:
            found[int(examples)] = value
    return sorted(found.items())


def stability_of(meta: Mapping[str, Any]) -> float | None:
    """Return the Spearman correlation between the two halves' Fisher traces, ``None`` where it was not measured."""
    return finite(meta.get("stability"))


def calibration_words(meta: Mapping[str, Any]) -> str:
    """Return what the ranking of the targets says about the number of examples.

    Args:
        meta: What the profile records.

    Returns:
        One or two sentences; empty where nothing was measured.
    """
    points, halves = calibration_points(meta), stability_of(meta)
    sentences = []
    if halves is not None:
        sentences.append(
            f"Two halves of the data, which share no example, rank the targets by their Fisher traces with a Spearman "
            f"correlation of {formats.number(halves)}."
        )
    if len(points) > 1:
        late = [examples for examples, value in points if value < SETTLED]
        settled = next((examples for examples, _ in points[:-1] if examples > max(late, default=0)), None)
        sentences.append(
            f"From {formats.count(settled)} examples on the ranking correlated with the final one at {SETTLED} or more."
            if settled is not None
            else f"The ranking came to {SETTLED} of the final one with the last doubling only: it had not settled."
        )
    return " ".join(sentences)


def _labels(value: Any) -> str:
    known = {
        "data": "data (the data's own labels: the empirical Fisher)",
        "model": "model (drawn from the model's predictions: the true Fisher)",
    }
    return known.get(str(value), readable(value))


def _mode(value: Any) -> str:
    known = {"eval": "eval (no dropout)", "train": "train (the model's own dropout)"}
    return known.get(str(value), readable(value))


def _named(nothing: str, of_each: Callable[[str], str] = str) -> Callable[[Any], str]:
    def words(value: Any) -> str:
        if not isinstance(value, list):
            return readable(value)
        more = f" and {len(value) - NAMED} more" if len(value) > NAMED else ""
        named = ", ".join(of_each(str(one)) for one in value[:NAMED])
        return f"{formats.count(len(value))}: {named}{more}" if value else nothing

    return words


def _curve(value: Any) -> str:
    points = calibration_points({"calibration_curve": value})
    return ", ".join(f"{formats.count(examples)}: {formats.number(rho)}" for examples, rho in points)


def _stability(value: Any) -> str:
    number = finite(value)
    return "not measured" if number is None else f"{formats.number(number)} (Spearman correlation between two halves)"


def _options(value: Any) -> str:
    return readable(value) if value else "defaults"


def _seconds(value: Any) -> str:
    number = finite(value)
    return readable(value) if number is None else formats.seconds(number)


def _count(value: Any) -> str:
    number = finite(value)
    return readable(value) if number is None else formats.count(number)


_WORDS: dict[Any, Callable[[Any], str]] = {
    "model_params": _count,
    "examples": _count,
    "labels": _labels,
    "mode": _mode,
    "skipped": _named("none"),
    "stability": _stability,
    "calibration_curve": _curve,
    "options": _options,
    "merged": _named("no", lambda name: name[:12]),
    "seconds": _seconds,
}
