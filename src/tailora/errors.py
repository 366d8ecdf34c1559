"""Every error a user can meet, and the sentence helpers they share.

An error is one sentence that names the value, the place and the way out.  ``UserError`` means that the input was
wrong (exit status 2 on the command line); every other ``TailoraError`` is a failure of the work itself (status 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TailoraError(Exception):
    """Base class of everything Tailora raises on purpose."""

    exit_code = 1


class UserError(TailoraError, ValueError):
    """What the user gave cannot be used; the message says what to change."""

    exit_code = 2


class UnknownNameError(UserError):
    """A name is not registered; the message offers the nearest known names."""


class BudgetError(UserError):
    """A budget cannot be read, or no plan can meet it."""


class PlacementError(UserError):
    """A placement rule cannot be read, or matches no target."""


class PlanMismatchError(UserError):
    """A plan (or profile) was made for another model."""


class ConfigError(UserError):
    """A configuration file or override is wrong."""


class DataError(UserError):
    """A data set cannot be read or does not have what the task needs."""


class ProfileError(TailoraError):
    """A signal could not be measured exactly."""


class TrainingError(TailoraError):
    """Training stopped for a reason that is not the user's input."""


def untrusted_code(model: str, error: Exception) -> ConfigError | None:
    """Build the error for a model that comes with code of its own, which nobody has allowed to run.

    Args:
        model: Hub id or folder.
        error: What transformers raised.

    Returns:
        The error, or ``None`` where the reason is another one.
    """
    if "trust_remote_code" not in str(error):
        return None
    return ConfigError(
        f"model {model!r} comes with Python code of its own, which is not run unless you allow it; read it, then allow "
        "it with trust_remote_code=true in the configuration or --trust-remote-code"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or an empty string.

    Args:
        name: What the user wrote.
        known: The names that exist.

    Returns:
        A fragment to append to a sentence.
    """
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if not near:
        folded = {option.lower(): option for option in options}
        near = [folded[name.lower()]] if name.lower() in folded else []
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a name that is not among the known ones.

    Args:
        kind: What the name stands for, such as ``"recipe"``.
        name: What the user wrote.
        known: The names that exist.

    Returns:
        The error, ready to raise.
    """
    options = sorted(known)
    hint = did_you_mean(name, options) or ";"
    return UnknownNameError(f"unknown {kind} {name!r}{hint} known: {', '.join(options) or 'none'}")
