"""Profiles of one model joined and compared: two data sets, two tasks, two halves, two machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tailora.artifacts import content_hash
from tailora.errors import UserError
from tailora.profiles import SUMS, Profile

if TYPE_CHECKING:
    from torch import Tensor, nn

SAME = ("model", "adapter", "loss", "labels", "mode", "seed", "options", "pooling")
"""What two profiles must have been measured with alike."""


def load_with_sums(folder: str | Path) -> Profile:
    """Read a saved profile together with its sums.

    Args:
        folder: The folder ``Profile.save`` wrote.

    Returns:
        The profile.

    Raises:
        UserError: It is no profile, is damaged, or was saved without sums.
    """
    from safetensors import SafetensorError, safe_open

    found = Profile.load(folder)
    path = Path(folder) / SUMS
    if not path.is_file():
        raise UserError(
            f"the profile in {str(folder)!r} was saved without its sums; profile again with keep_sums=True "
            "(tailora profile --keep-sums)"
        )
    try:
        with safe_open(path, "pt") as file:
            owner = (file.metadata() or {}).get("profile")
            sums = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"the sums of the profile in {str(folder)!r} are damaged ({error}); profile again") from None
    if owner != found.hash:
        raise UserError(f"the sums in {str(folder)!r} are those of another profile; profile again with --keep-sums")
    return Profile(found.targets, found.signals, found.meta, sums)


def merge(profiles: Sequence[Profile], model: nn.Module | None = None) -> Profile:
    """Return the profile of all examples of several profiles, exactly as if one pass had seen them.

    Args:
        profiles: At least two, with sums, of the same model, targets, signals and settings.
        model: The model, for signals that read its weights; without it those are taken over from the first profile
            where they need no data, and left out where they do.  Intrinsic dimensions do not add up and are left out.

    Returns:
        A profile with sums.

    Raises:
        UserError: They do not fit together, or one has no sums.
    """
    from tailora.signals import SIGNALS
    from tailora.signals.base import load_sums
    from tailora.signals.reading import statistics_for

    if len(profiles) < 2:
        raise UserError(f"merging needs two profiles or more, not {len(profiles)}; name another")
    _check(profiles)
    first = profiles[0]
    seed, options = int(first.meta.get("seed", 0)), dict(first.meta.get("options") or {})
    names = [name for name in first.signals if name in SIGNALS]
    context, statistics = statistics_for(model, first.targets, names, seed, options)
    total = _added([profile.sums or {} for profile in profiles])
    try:
        load_sums(statistics, total)
    except KeyError as error:
        raise UserError(f"the sums of a profile lack {error}; profile again") from None
    signals: dict[str, np.ndarray] = {}
    for name in names:
        signal = SIGNALS[name]
        if signal.states:
            continue
        if not signal.needs:
            signals[name] = np.asarray(first.signals[name])
        elif model is not None or not signal.weights:
            signals[name] = signal.read(context, statistics)
    return Profile(first.targets, signals, _meta(profiles), total)


def agreement(one: Profile, other: Profile) -> dict[str, float]:
    """Return how alike two profiles rank their common targets.

    Args:
        one: A profile.
        other: Another one, of the same model or of another with targets of the same names.

    Returns:
        Signal name to the Spearman correlation over targets; of spectra, of their energies.

    Raises:
        UserError: They share fewer than three targets, or no signal.
    """
    from scipy.stats import spearmanr

    names = [target.name for target in one.targets if target.name in {t.name for t in other.targets}]
    shared = [name for name in one.signals if name in other.signals]
    if len(names) < 3 or not shared:
        raise UserError(
            f"the profiles share {len(names)} targets and {len(shared)} signals; compare profiles of one architecture "
            "with a signal in common"
        )
    found: dict[str, float] = {}
    for signal in shared:
        mine, theirs = one.scalar(signal), other.scalar(signal)
        values = np.array([[mine[name], theirs[name]] for name in names])
        values = values[np.isfinite(values).all(axis=1)]
        constant = len(values) < 3 or (np.ptp(values, axis=0) == 0).any()
        result: Any = None if constant else spearmanr(values[:, 0], values[:, 1])
        found[signal] = float("nan") if constant else float(result.statistic)
    return found


def _check(profiles: Sequence[Profile]) -> None:
    first = profiles[0]
    for number, other in enumerate(profiles, 1):
        if other.sums is None:
            raise UserError(f"profile number {number} holds no sums; measure it with keep_sums=True")
        if other.targets != first.targets:
            raise UserError(f"profile number {number} measures other targets than the first; measure both alike")
        if odd := set(other.signals) ^ set(first.signals):
            raise UserError(
                f"profile number {number} and the first differ in the signals {', '.join(sorted(odd))}; measure both "
                "alike, and merge all parts at once: a merge leaves out intrinsic_dimension and sensitivity"
            )
        for key in SAME:
            if other.meta.get(key) != first.meta.get(key):
                raise UserError(
                    f"profile number {number} has {key} {other.meta.get(key)!r} and the first {first.meta.get(key)!r}; "
                    "only profiles measured alike can be merged"
                )


def _added(sums: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    names = set(sums[0])
    if any(set(one) != names for one in sums[1:]):
        raise UserError("the profiles keep different sums; measure them with the same signals and version")
    added = {name: tensor.clone() for name, tensor in sums[0].items()}
    for one in sums[1:]:
        for name, tensor in one.items():
            added[name] = added[name] + tensor
    return added


def _meta(profiles: Sequence[Profile]) -> dict[str, Any]:
    metas = [profile.meta for profile in profiles]
    examples = sum(int(meta["examples"]) for meta in metas)
    weighted = sum(float(meta["mean_loss"]) * int(meta["examples"]) for meta in metas)
    return {
        **metas[0],
        "data": content_hash([meta["data"] for meta in metas]),
        "examples": examples,
        "batches": sum(int(meta["batches"]) for meta in metas),
        "mean_loss": weighted / max(examples, 1),
        "one_by_one": next((meta["one_by_one"] for meta in metas if meta["one_by_one"]), ""),
        "skipped": [text for meta in metas for text in meta.get("skipped", ())],
        "stability": None,
        "calibration_curve": [],
        "seconds": sum(float(meta["seconds"]) for meta in metas),
        "merged": [profile.hash for profile in profiles],
    }
