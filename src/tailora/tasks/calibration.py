"""The profile of a run's base model, measured at most once per output folder and shared between runs."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailora import processes
from tailora.artifacts import content_hash
from tailora.config import RunConfig
from tailora.config_files import fingerprint_path
from tailora.early_stopping import check_metric, hold_out
from tailora.errors import UserError
from tailora.evaluation.entities import marks_entities
from tailora.locking import run_lock
from tailora.tasks import TASKS, Examples, LoadedModel, Splits, Task
from tailora.tasks.undivided import encode_undivided, undivided

if TYPE_CHECKING:
    import torch

    from tailora.data import Labels
    from tailora.plans import Plan
    from tailora.profiles import Profile
    from tailora.progress import Progress
    from tailora.targets import Target

Batch = dict[str, "torch.Tensor"]
"""What the model is called with."""

ALWAYS_MEASURED = ("fisher", "gradient_spectrum")
"""Signals that every run records, so that every report can show them."""


@dataclass(frozen=True)
class Prepared:
    """A run's data and model, read and tokenised.

    Attributes:
        task: The task.
        splits: The rows.
        base: The base model; never changed.
        training: Training examples.
        evaluation: Evaluation examples.
    """

    task: Task
    splits: Splits
    base: LoadedModel
    training: Examples
    evaluation: Examples


def prepare(
    config: RunConfig,
    base: LoadedModel | None = None,
    *,
    known: Callable[[Splits], LoadedModel | None] | None = None,
    whole: bool = False,
) -> Prepared:
    """Read the data, load the model and tokenise.

    Args:
        config: The run's configuration.
        base: The loaded base model; loaded when left out.
        known: Looks for the base model once the data is read, which says how many classes its head has.
        whole: Whether all training data is for training and nothing evaluates; a stream stays as it is.

    Returns:
        What runs and profiles start from.

    Raises:
        UserError: The data or the model cannot be used.
    """
    task = TASKS[config.task.kind].bound(config.task)
    if config.training.validates:
        check_metric(config.training, known_scores(config))
    whole = whole and not config.task.streaming
    splits = task.read(undivided(config.task) if whole else config.task)
    if config.training.validates:
        check_metric(config.training, known_scores(config, splits.labels))
    base = base or (known(splits) if known else None) or task.load(config, splits)
    if whole:
        return Prepared(task, splits, base, encode_undivided(task, config.task, splits, base.tokenizer), [])
    return Prepared(task, splits, base, *task.encode(config.task, splits, base.tokenizer))


def known_scores(config: RunConfig, labels: Labels | None = None) -> tuple[str, ...]:
    """Return the names of the scores that an evaluation of a configuration's task has.

    Args:
        config: The run's configuration.
        labels: The classes; before they are known, scores that only some of them have are among the names.

    Returns:
        The names, ``loss`` first.
    """
    task = TASKS[config.task.kind]
    per_token = ("perplexity",) if config.task.kind in ("causal-lm", "seq2seq") else ()
    names = dict.fromkeys(("loss", *per_token, task.primary, *task.metrics))
    if labels is not None and not marks_entities(labels.names):
        names.pop("entity_f1", None)
    return tuple(names)


def measure_profile(
    config: RunConfig,
    signals: Sequence[str] = ALWAYS_MEASURED,
    *,
    progress: Progress | None = None,
    whole: bool = False,
    share: bool = False,
    around: Callable[[Iterable[Batch]], Iterable[Batch]] | None = None,
    **how: Any,
) -> Profile:
    """Measure a profile of the targets in ``config.placement``, on training data only; nothing is cached.

    Without evaluation data, the share that a run would hold out is left out here as well, and so is the share that
    early stopping would validate on.

    Args:
        config: Model, its quantisation, task, placement, calibration and what is held out of training.
        signals: What to measure.
        progress: Called as ``progress("profile", examples done, examples)``, both of this process.
        whole: Whether to draw from all training rows and hold nothing out for evaluation; not of a stream.
        share: Whether the processes that a launcher started, and that joined, measure a share of the batches each.
        around: Given this process's batches; what it yields is measured.
        **how: Further keyword arguments of ``tailora.profile``, such as ``labels``.

    Returns:
        The profile; with ``share`` that of all processes, in every one.

    Raises:
        UserError: The data, the model or a signal cannot be used.
    """
    from tailora.placement import select
    from tailora.signals.options import check_options
    from tailora.targets import find_targets

    check_options(signals, **how)
    prepared = prepare(config, whole=whole)
    targets = select(find_targets(prepared.base.model), config.placement)
    how |= {"share": share, "around": around}
    measured = _measure(config, prepared, list(targets), tuple(signals), progress, **how)
    return replace(measured, meta={**measured.meta, "placement": config.placement})


def cached_profile(
    config: RunConfig,
    prepared: Prepared,
    signals: Sequence[str] = (),
    *,
    progress: Progress | None = None,
    known: dict[str, Profile] | None = None,
) -> Profile:
    """Return the profile of the base model on the training data, from the cache where it is there.

    The cache key holds the model and its quantisation, the rows and which of them train, the tokenisation, the
    calibration and the targets, but neither the run's seed nor its recipe: runs that differ in those share the profile.
    Of several processes that need one at the same time, one measures and the others wait for it.

    Args:
        config: The run's configuration.
        prepared: Its data and model.
        signals: What the recipe needs besides ``ALWAYS_MEASURED``.
        progress: Called as ``progress("profile", examples done, examples)``.
        known: Profiles that this process has read or measured before, by their key; the one returned is added.

    Returns:
        The profile.
    """
    names = tuple(dict.fromkeys((*ALWAYS_MEASURED, *signals)))
    targets = _targets(config, prepared)
    key = content_hash(
        {
            "model": fingerprint_path(config.model),
            "revision": config.revision,
            "quantization": config.quantization and config.quantization.model_dump(mode="json"),
            "held_out": config.training.validation_share if config.training.validates else None,
            "data": prepared.splits.fingerprint,
            "task": [config.task.kind, config.task.text, config.task.text_pair, config.task.label],
            "examples": [config.task.max_length, config.task.train_examples],
            "calibration": config.calibration.model_dump(mode="json"),
            "targets": [target.name for target in targets],
            "signals": sorted(names),
        }
    )
    if known is not None and key in known:
        return known[key]
    place = Path(config.output) / "profiles" / key
    found = _stored(place)
    if found is None:
        place.parent.mkdir(parents=True, exist_ok=True)
        with run_lock(place.parent, wait=math.inf, name=f".{key}.lock"):
            # Whoever held the lock before has measured it.
            found = _stored(place)
            if found is None:
                found = _measure(config, prepared, targets, names, progress)
                _store(found, place)
    if known is not None:
        known[key] = found
    return found


def start_profile(
    config: RunConfig, prepared: Prepared, plan: Plan, *, progress: Progress | None = None
) -> Profile | None:
    """Measure what the initialisation of a run's recipe reads, with its sums.

    It is the same for every seed of a study.  Sums can be large, so they are measured by every run rather than stored.

    Args:
        config: The run's configuration.
        prepared: Its data and model.
        plan: Its plan.
        progress: Called as ``progress("profile", examples done, examples)``.

    Returns:
        A profile of the planned targets; ``None`` where the initialisation reads none.
    """
    from tailora.initialisation import INITIALISATIONS

    needs = INITIALISATIONS[plan.recipe.initialisation.name].needs
    adapted = [entry.target for entry in plan.targets if entry.rank]
    return _measure(config, prepared, adapted, needs, progress, keep_sums=True) if needs else None


def _stored(place: Path) -> Profile | None:
    """Load a profile; ``None`` where there is none that can be read."""
    from tailora.profiles import Profile

    if place.is_dir():
        with contextlib.suppress(UserError):
            return Profile.load(place)
    return None


def _store(measured: Profile, place: Path) -> None:
    """Write a profile under a temporary name and rename it; what a killed process left under that name goes."""
    temporary = place.with_name(f".{place.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        measured.save(temporary)
        if place.exists():
            shutil.rmtree(place, ignore_errors=True)  # it was there and could not be read
        with contextlib.suppress(OSError):
            temporary.rename(place)  # without locks another run may have been first; theirs is as good
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def calibration_batches(config: RunConfig, prepared: Prepared) -> list[dict[str, torch.Tensor]]:
    """Return the batches that profiles and masks are measured on: training examples, drawn by the calibration's seed.

    Args:
        config: The run's configuration.
        prepared: Its data.

    Returns:
        Dicts that the model is called with, on the host.
    """
    settings = config.calibration
    return prepared.task.calibration(
        prepared.base.tokenizer,
        # What early stopping validates on decides nothing before.
        hold_out(config, prepared.training)[0],
        count=settings.examples,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )


def summarise(profile: Profile, read: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Return one number per target and signal, for heat maps.

    Args:
        profile: The profile.
        read: Signals that the recipe reads, besides ``ALWAYS_MEASURED``.

    Returns:
        Signal -> target -> value; a spectrum counts with the sum of its squared singular values. What has several
        numbers of a target and is no spectrum is left out.
    """
    wanted = dict.fromkeys((*ALWAYS_MEASURED, *read))
    drawn = (name for name in wanted if name in profile.signals)
    return {name: profile.scalar(name) for name in drawn if _one_number(name, profile.signals[name])}


def _one_number(name: str, values: Any) -> bool:
    """Tell whether a signal has one number a target, or a spectrum, whose energy is one."""
    return values.ndim == 1 or name.endswith("_spectrum")


def device_of(config: RunConfig) -> torch.device:
    """Return the device that the Trainer will use.

    Args:
        config: The run's configuration.

    Returns:
        The GPU where one is visible and wanted, the CPU otherwise.
    """
    import torch

    if config.training.use_cpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _targets(config: RunConfig, prepared: Prepared) -> list[Target]:
    """Choose what to measure: all linear targets, and whatever the placement names beyond them."""
    from tailora.placement import select
    from tailora.targets import find_targets

    found = find_targets(prepared.base.model)
    chosen = {*select(found, "all-linear"), *select(found, config.placement)}
    return [target for target in found if target in chosen]


def _measure(
    config: RunConfig,
    prepared: Prepared,
    targets: list[Target],
    names: tuple[str, ...],
    progress: Progress | None,
    *,
    share: bool = False,
    around: Callable[[Iterable[Batch]], Iterable[Batch]] | None = None,
    **how: Any,
) -> Profile:
    from tailora.packed import count_weights
    from tailora.profiles import profile

    # The new head is seeded by the calibration, not by the run: all seeds of a study start from one profile.
    model = prepared.base.fresh(config.calibration.seed).model.to(device_of(config))
    batches = calibration_batches(config, prepared)
    # Otherwise the first process of a run measures for all of them, and there is nothing to add up.
    rank, several = processes.place() if share else (0, 1)
    mine, taken = batches[rank::several], 0
    total = sum(len(batch["labels"]) for batch in mine)

    def moved() -> Iterator[Batch]:
        nonlocal taken
        for batch in around(mine) if around else mine:
            taken += 1
            yield {name: tensor.to(device_of(config)) for name, tensor in batch.items()}

    def tell(done: int) -> None:
        if progress:
            progress("profile", done, total)

    measured = profile(model, moved(), names, targets=targets, progress=tell, **{"all_processes": share, **how})
    # Shares such as budget=0.5% are of the weights that there are, not of the bytes they are packed into.
    meta = {**measured.meta, "model_params": count_weights(model)}
    if several > 1:
        meta["data"] = _fingerprint(batches, processes.from_all(taken))
    return replace(measured, meta=meta)


def _fingerprint(batches: Sequence[Batch], taken: Sequence[int]) -> str:
    """Return the fingerprint that one process would give to the batches that several took by turns."""
    from tailora.fingerprints import DataFingerprint

    data = DataFingerprint()
    for number, batch in enumerate(batches):
        turn, process = divmod(number, len(taken))
        if turn < taken[process]:
            data.update(batch)
    return data.hexdigest()
