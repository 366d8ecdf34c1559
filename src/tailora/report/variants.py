"""What tells runs of one recipe apart, whatever the report calls them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tailora.report.records import RunRecord

# Where a run went and what it is called, which say nothing about how it was made.
_OUTSIDE = {"label", "hash", "output", "output_dir", "folder", "device", "trust_remote_code", "seed"}
_SHARED = ("training", "task", "evaluation", "calibration")


def recipe_of(run: RunRecord) -> str:
    """Return the name of the recipe itself, whatever label the run was given."""
    value = run.config.get("recipe") or run.plan.get("recipe") or ""
    return str(value.get("name") or "") if isinstance(value, Mapping) else str(value)


def design(run: RunRecord) -> str:
    """Return what is a recipe's own in a run's configuration, as text to compare: no task, training or calibration."""
    return _text({key: value for key, value in run.config.items() if key not in _OUTSIDE and key not in _SHARED})


def variant(run: RunRecord, without: Iterable[str] = ()) -> str:
    """Return a run's whole configuration but its seed and label, as text to compare.

    Args:
        run: The run.
        without: Dotted keys that do not count, such as ``training.learning_rate``.

    Returns:
        Equal text for runs that differ in nothing else.
    """
    config: dict[str, Any] = {key: value for key, value in run.config.items() if key not in _OUTSIDE}
    for name in without:
        section, _, key = name.partition(".")
        inner = config.get(section)
        if key and isinstance(inner, Mapping):
            config[section] = {found: value for found, value in inner.items() if found != key}
        elif not key:
            config.pop(section, None)
    return _text(config)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
