"""One run from configuration to folder: load, profile, plan, train, evaluate; resumable at every point."""

from __future__ import annotations

import contextlib
import datetime
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailora.artifacts import read_json, write_json
from tailora.config import RunConfig, is_recipe_file, make_config
from tailora.errors import PlanMismatchError, TailoraError, UserError
from tailora.evaluation import Evaluation
from tailora.progress import Progress
from tailora.tasks import TASKS, LoadedModel
from tailora.tasks.calibration import Prepared, cached_profile, device_of, measure_profile, prepare, summarise
from tailora.training import Job, Trained, evaluation_row, train, write_rows

if TYPE_CHECKING:
    import torch

    from tailora.plans import Plan
    from tailora.profiles import Profile
    from tailora.recipes import Recipe


@dataclass(frozen=True)
class _Work:
    """What the stages of one run share."""

    config: RunConfig
    folder: Path
    recipe: Recipe
    prepared: Prepared
    progress: Progress | None
    seconds: dict[str, float] = field(default_factory=dict)

    def score(self, model: Any) -> Evaluation:
        """Evaluate ``model`` on the evaluation examples."""
        return _score(self.config, self.prepared, model)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Keep the seconds of a stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start


def run_folder(config: RunConfig) -> Path:
    """Return the folder of a run, whether or not it exists.

    Args:
        config: The run's configuration.

    Returns:
        ``<output>/<recipe>-s<seed>-<first 12 digits of the hash>``.
    """
    name = Path(config.recipe).stem if is_recipe_file(config.recipe) else config.recipe
    return Path(config.output) / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-s{config.seed}-{config.hash[:12]}"


def is_done(config: RunConfig) -> bool:
    """Tell whether a run has finished: its folder's status says so, for this very configuration."""
    try:
        status = read_json(run_folder(config) / "status.json")
    except UserError:
        return False
    return isinstance(status, dict) and status.get("status") == "done" and status.get("hash") == config.hash


def load_base(config: RunConfig) -> LoadedModel:
    """Load the base model of a configuration, to share it between runs.

    Args:
        config: A run's configuration.

    Returns:
        The model; ``execute`` copies it and leaves it untouched.
    """
    task = TASKS[config.task.kind]
    return task.load(config, task.read(config.task))


def execute(
    config: RunConfig,
    *,
    profile: Profile | None = None,
    base: LoadedModel | None = None,
    progress: Progress | None = None,
) -> Path:
    """Do a run, or what is left of it.

    A finished run is returned at once.  A killed one continues from its last checkpoint with the plan it stored.

    Args:
        config: The run's configuration.
        profile: A profile of the base model; measured, or taken from the output folder's cache, when left out.
        base: The loaded base model (``load_base``); loaded when left out.
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        The run's folder; ``status.json`` in it is written last.

    Raises:
        UserError: The configuration, data, model or recipe cannot be used.
        TrainingError: Training diverged.
    """
    folder = run_folder(config)
    if is_done(config):
        return folder
    recipe = _recipe(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").unlink(missing_ok=True)
    started = time.perf_counter()
    try:
        with _terminable():
            write_json(folder / "config.json", config.to_dict() | {"recipe": recipe.name})
            work = _Work(config, folder, recipe, prepare(config, base), progress)
            _stages(work, profile, started)
    except Exception as error:
        _status(folder, config, "failed", _one_line(error))
        raise
    except BaseException:
        _status(folder, config, "interrupted", "stopped before the end; run it again to continue")
        raise
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    _status(folder, config, "done", None)
    return folder


def evaluate_adapter(
    adapter: str | Path, config: RunConfig | None = None, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Score a saved adapter.

    Args:
        adapter: A run's folder, the ``adapter`` folder inside one, or any peft adapter folder.
        config: Base model and task; those of the run the adapter lies in when left out.
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        What ``scores.json`` holds.

    Raises:
        UserError: There is no adapter, or no configuration, or the two do not fit.
    """
    from peft import PeftModel

    path = Path(adapter)
    if not (path / "adapter_config.json").is_file() and (path / "adapter" / "adapter_config.json").is_file():
        path = path / "adapter"
    if not (path / "adapter_config.json").is_file():
        raise UserError(f"{str(adapter)!r} holds no adapter_config.json; give an adapter folder or a run folder")
    if config is None:
        stored = path.parent / "config.json"
        if not stored.is_file():
            raise UserError(f"adapter {str(adapter)!r} lies in no run folder; give the task with a configuration")
        config = make_config(read_json(stored, "run configuration"), where=str(stored))
    prepared = prepare(config)
    if progress:
        progress("evaluate", 0, 1)
    try:
        model = PeftModel.from_pretrained(prepared.base.model, str(path))
    except (RuntimeError, ValueError, KeyError) as error:
        raise PlanMismatchError(
            f"adapter {str(adapter)!r} does not fit model {config.model!r} ({_one_line(error)}); give its own base"
        ) from None
    scores = _score(config, prepared, model.to(device_of(config))).scores()
    if progress:
        progress("evaluate", 1, 1)
    return scores


def _recipe(config: RunConfig) -> Recipe:
    from tailora.recipes import load_recipe

    if config.recipe == "explicit":
        # Ranks written down by hand are no shipped recipe; the plan reads them from the allocation's options.
        return load_recipe({"name": "explicit", "allocation": {"name": "explicit"}})
    return load_recipe(config.recipe)


def _score(config: RunConfig, prepared: Prepared, model: Any) -> Evaluation:
    return prepared.task.evaluate(
        model,
        prepared.base.tokenizer,
        prepared.evaluation,
        batch_size=config.training.per_device_eval_batch_size,
        labels=prepared.splits.labels,
    )


def _stages(work: _Work, profile: Profile | None, started: float) -> None:
    """Profile, plan, train and evaluate; write every file but the status."""
    with work.timed("profile"):
        profile = profile or cached_profile(work.config, work.prepared, work.recipe.signals, progress=work.progress)
        write_json(work.folder / "signals.json", summarise(profile))
    with work.timed("plan"):
        plan = _plan(work, profile)
    fresh = work.prepared.base.fresh(work.config.seed)
    model = plan.apply(
        fresh.model,
        task_type=work.prepared.task.task_type,
        modules_to_save=list(fresh.new_modules) or None,
        seed=work.config.seed,
    )
    write_json(work.folder / "counts.json", _counts(model, work.prepared.base))
    with work.timed("train"):
        trained = train(model, _job(work, fresh), optimizer=_optimizer(work, model))
    with work.timed("evaluate"):
        if work.progress:
            work.progress("evaluate", 0, 1)
        scored = work.score(model)
        if work.progress:
            work.progress("evaluate", 1, 1)
    _save_adapter(model, fresh.tokenizer, work.folder / "adapter")
    _write_results(work, trained, scored, started)


def _write_results(work: _Work, trained: Trained, scored: Evaluation, started: float) -> None:
    from tailora.environment import environment

    write_rows(work.folder / "history.jsonl", [*trained.history, evaluation_row(trained.steps, scored)])
    write_rows(work.folder / "predictions.jsonl", scored.records)
    write_json(work.folder / "scores.json", scored.scores())
    write_json(work.folder / "environment.json", environment() | {"data": work.prepared.splits.fingerprint})
    timings: dict[str, float] = {f"{stage}_s": round(seconds, 3) for stage, seconds in work.seconds.items()}
    timings["total_s"] = round(time.perf_counter() - started, 3)
    timings["peak_memory_mb"] = round(_peak_memory(), 1)
    timings["resumed_from_step"] = trained.resumed_from
    write_json(work.folder / "timings.json", timings)


def _counts(model: Any, base: LoadedModel) -> dict[str, int]:
    """Count on the peft model what trains; the base is what remains of the model without its head."""
    from tailora.adapters import count_parameters

    counted = count_parameters(model)
    total = sum(parameter.numel() for parameter in base.model.parameters())
    # peft keeps a frozen copy of the head besides the one it trains, so the base is not simply all that is frozen.
    return {**counted, "base_params": total - counted["head_params"]}


def _plan(work: _Work, profile: Profile) -> Plan:
    """Load the stored plan of a run that was cut off, or make and store one."""
    from tailora.plans import Plan, plan

    place, config = work.folder / "plan.json", work.config
    if place.is_file():
        with contextlib.suppress(UserError):
            return Plan.load(place)
    # Written-down ranks cost what they cost unless a budget is asked for.
    unbounded = config.recipe == "explicit" and "budget" not in config.model_fields_set
    budget = None if unbounded else config.budget
    made = plan(profile, config.recipe, budget, config.placement, seed=config.seed, **config.allocation)
    made.save(place)
    return made


def _optimizer(work: _Work, model: Any) -> torch.optim.Optimizer | None:
    from tailora.methods import METHODS, OptimizerSettings

    training = work.config.training
    method = METHODS[work.recipe.training.method]
    # The optimizer must hold the tensors that train, so the model goes to its device first.
    model.to(device_of(work.config))
    settings = OptimizerSettings(training.learning_rate, training.weight_decay)
    return method.optimizer(model, settings, work.recipe.training.options)


def _job(work: _Work, fresh: LoadedModel) -> Job:
    return Job(
        task=work.prepared.task,
        tokenizer=fresh.tokenizer,
        examples=work.prepared.training,
        settings=work.config.training,
        seed=work.config.seed,
        folder=work.folder,
        evaluate=work.score,
        progress=work.progress,
    )


def _save_adapter(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the stock peft adapter with its tokenizer to a temporary folder, then rename it."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".adapter-") as temporary:
        inner = Path(temporary) / "adapter"
        model.save_pretrained(inner)
        tokenizer.save_pretrained(inner)
        if folder.exists():
            shutil.rmtree(folder)
        inner.rename(folder)


def _peak_memory() -> float:
    """Return the peak memory in MiB: of the GPU where there is one, of this process otherwise."""
    import resource
    import sys

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an interrupt, so that a scheduler's notice still gets a status written."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _status(folder: Path, config: RunConfig, status: str, error: str | None) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(folder / "status.json", {"status": status, "error": error, "hash": config.hash, "finished": now})


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, TailoraError) else f"{type(error).__name__}: {text}"


__all__ = ["evaluate_adapter", "execute", "is_done", "load_base", "measure_profile", "run_folder"]
