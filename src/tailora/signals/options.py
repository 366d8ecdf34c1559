"""Options of a profile, checked before a model is loaded or a batch is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tailora.errors import UserError, unknown_name
from tailora.signals import SIGNALS
from tailora.signals.intrinsic_dimension import checked_estimator
from tailora.signals.newton import held_out_of, iterations_of

Check = Callable[[Mapping[str, Any], str, Any], Any]

CHOICES = {
    "labels": ("data", "model"),
    "mode": ("eval", "train"),
    "on_nonfinite": ("raise", "skip"),
    "pooling": ("mean", "last", "first"),
}
"""Options of ``profile`` that are one of a few words."""


def check_options(signals: Sequence[str], *, until: float | None = None, **given: Any) -> None:
    """Refuse options of ``profile`` that cannot be used, before a model is loaded for them.

    Args:
        signals: The signals asked for.
        until: As in ``profile``.
        **given: Options among ``CHOICES``, and those that a signal of several passes cannot have; others are passed
            over.

    Raises:
        UserError: One cannot be used.
    """
    for name, known in CHOICES.items():
        if given.get(name, known[0]) not in known:
            raise UserError(f"{name}={given[name]!r} is not known; use {' or '.join(map(repr, known))}")
    if until is not None and ("fisher" not in signals or not 0 < until <= 1):
        raise UserError(
            f"until={until} must lie between 0 and 1 and needs the signal 'fisher'; add it or leave until out"
        )
    _check_further(given.get("options") or {})
    _check_several(signals, {**given, "until": until})


def _check_further(options: Mapping[str, Any]) -> None:
    """Refuse an unknown option of a signal, or a value it cannot have, whether or not that signal is asked for."""
    if not isinstance(options, Mapping):
        raise UserError(f"options={options!r} must be a mapping of names to values, such as {{'sketch': 256}}")
    for name, value in options.items():
        if name not in FURTHER:
            raise unknown_name("option of signals", str(name), FURTHER)
        FURTHER[name](options, name, value)


def _whole(least: int) -> Check:
    """Return a check for whole numbers from ``least`` up."""

    def check(_: Mapping[str, Any], name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"option {name}={value!r} must be a whole number of at least {least}")

    return check


FURTHER: dict[str, Check] = {
    "sketch": _whole(0),
    "moment_sketch": _whole(0),
    "fresh_rank": _whole(1),
    "newton_iterations": lambda options, *_: iterations_of(options),
    "newton_held_out": lambda options, *_: held_out_of(options),
    "intrinsic_dimension": lambda _, name, value: checked_estimator(value),
}
"""Checks of the entries of ``options``; each is given all options, the entry's name and its value."""


def _check_several(signals: Sequence[str], given: Mapping[str, Any]) -> None:
    """Refuse what does not go with signals that take several passes."""
    name = next((name for name in signals if SIGNALS[name].solve is not None), None)
    if name is None:
        return
    for option, plain in (("until", None), ("resume", None), ("keep_sums", False)):
        if given.get(option, plain) != plain:
            raise UserError(
                f"{option}={given[option]!r} does not go with signal {name!r}, which takes several passes over all "
                "batches; leave it out, or measure that signal in a profile of its own"
            )
    for option, plain in (("mode", "eval"), ("labels", "data"), ("on_nonfinite", "raise")):
        if given.get(option, plain) != plain:
            raise UserError(
                f"{option}={given[option]!r} does not go with signal {name!r}, which needs {option}={plain!r}; leave "
                "it out, or measure that signal in a profile of its own"
            )
