"""Which of a recipe's runs speak for it, and what the compared runs do not share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tailora.report.records import RunRecord, finite

SIZE_TOLERANCE = 0.05
"""Recipes of one budget whose sizes differ by a larger share are pointed out."""

# What tells runs, groups and machines apart, but not one setting from another.
_APART = {"recipe", "label", "budget", "model", "hash", "output", "output_dir", "folder", "device", "trust_remote_code"}
# What compared recipes should have in common; all else is a recipe's own design.
_SHARED = ("training.", "task.", "evaluation.", "calibration.")


def _settings(run: RunRecord) -> dict[str, Any]:
    """Everything in the configuration but what tells seeds, recipes and groups apart, as flat dotted keys."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if key != "seed":
                    walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value

    walk("", {key: value for key, value in run.config.items() if key not in _APART})
    return flat


def by_design(recipes: Mapping[str, Sequence[RunRecord]]) -> dict[str, list[RunRecord]]:
    """Split a recipe that was run with several options of its own, such as placements, into one entry each.

    Args:
        recipes: Recipe to its runs.

    Returns:
        Recipe, with the options that tell its designs apart where there are several, to its runs.
    """
    result: dict[str, list[RunRecord]] = {}
    for recipe, members in recipes.items():
        tables = [
            {key: value for key, value in _settings(run).items() if not key.startswith(_SHARED)} for run in members
        ]
        keys = sorted({key for table in tables for key in table})
        differing = [key for key in keys if len({_text(table.get(key)) for table in tables}) > 1]
        for run, table in zip(members, tables, strict=True):
            told = ", ".join(f"{key.rpartition('.')[2]} {_text(table.get(key))}" for key in differing)
            result.setdefault(f"{recipe} ({told})" if told else recipe, []).append(run)
    return result


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def one_setting(recipe: str, members: Sequence[RunRecord], notes: list[str]) -> tuple[RunRecord, ...]:
    """Choose one setting of a recipe and one run per seed, and say so where there was a choice."""
    variants: dict[str, dict[int, RunRecord]] = {}
    repeated = 0
    for run in members:
        seeds = variants.setdefault(json.dumps(_settings(run), sort_keys=True, default=str), {})
        repeated += run.seed in seeds
        seeds.setdefault(run.seed, run)
    if repeated:
        notes.append(f"{recipe}: {repeated} repeated run(s) of the same setting and seed are not counted twice.")

    if len(variants) == 1:
        chosen = next(iter(variants.values()))
        return tuple(chosen[seed] for seed in sorted(chosen))
    # A loss on the very examples that give the score must not choose: it would favour whoever searched most.
    clean = all(validation_loss(run) is not None and not watches_score(run) for run in members)
    losses = {key: fmean(_selector(run, clean) for run in found.values()) for key, found in variants.items()}
    best = min(variants, key=lambda key: (-len(variants[key]), losses[key], key))
    chosen = tuple(variants[best][seed] for seed in sorted(variants[best]))
    rate = chosen[0].learning_rate
    notes.append(
        f"{recipe}: {len(variants)} settings were run; shown is the one with the most seeds, then the lowest "
        f"{'validation' if clean else 'training'} loss{f' (learning rate {rate:g})' if rate is not None else ''}."
    )
    return chosen


def validation_loss(run: RunRecord) -> float | None:
    """Return the last validation loss that was logged, or ``None``."""
    losses = _logged(run, "eval")
    return losses[-1] if losses else None


def watches_score(run: RunRecord) -> bool:
    """Tell whether the evaluation while training used the examples of the final score: both losses are the same."""
    last, final = validation_loss(run), finite(run.scores.get("loss"))
    return last is not None and final is not None and math.isclose(last, final, rel_tol=1e-9)


def _selector(run: RunRecord, clean: bool) -> float:
    losses = _logged(run, "eval" if clean else "train")
    # One logged training loss is one batch: take the mean of the last quarter.
    return fmean(losses[-1:] if clean else losses[-max(1, len(losses) // 4) :]) if losses else math.inf


def _logged(run: RunRecord, split: str) -> list[float]:
    return [loss for row in run.history if row.get("split") == split and (loss := finite(row.get("loss"))) is not None]


def unequal_settings(chosen: Mapping[str, Sequence[RunRecord]]) -> list[str]:
    """Name settings, other than the learning rate, in which the compared recipes differ."""
    tables = {name: _settings(members[0]) for name, members in chosen.items()}
    keys = sorted({key for table in tables.values() for key in table})
    notes = []
    for key in keys:
        # A recipe's own options are what is compared; a task or training setting is what should be equal.
        if not key.startswith(_SHARED) or key.endswith("learning_rate"):
            continue
        values = {name: _text(table.get(key)) for name, table in tables.items()}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{name} {value}" for name, value in values.items())
            notes.append(f"The recipes do not share {key}: {shown[:200]}.")
    return notes


def unequal_sizes(chosen: Mapping[str, Sequence[RunRecord]]) -> list[str]:
    """Say so when recipes of one budget did not train about as many adapter parameters."""
    sizes = {name: members[0].adapter_params for name, members in chosen.items()}
    known = {name: size for name, size in sizes.items() if size}
    if not known or max(known.values()) <= (1 + SIZE_TOLERANCE) * min(known.values()):
        return []
    small, large = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    return [f"The recipes do not train equally many parameters: {small} {known[small]:,}, {large} {known[large]:,}."]
