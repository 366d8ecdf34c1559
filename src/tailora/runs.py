"""One run from configuration to folder: load, profile, plan, train, evaluate; resumable at every point."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailora import peak_memory, processes
from tailora.adapter_folders import evaluate_adapter, one_line, push_adapter, save_adapter, score
from tailora.artifacts import write_json
from tailora.config import RunConfig
from tailora.early_stopping import hold_out
from tailora.errors import UserError
from tailora.evaluation import Evaluation, with_texts
from tailora.failures import explain, memory_advice
from tailora.harness import Measured, check_fit, check_harness, measure
from tailora.locking import run_lock
from tailora.progress import Progress
from tailora.requirements import check_packages
from tailora.run_folders import check_folder, clean, is_done, load_plan, run_folder, write_status
from tailora.run_masks import mask_of, masked_optimizer
from tailora.run_pilots import FOLDER as PILOT
from tailora.run_pilots import PilotRun, check_pilot, pilot_of, start_from
from tailora.schedules import check_schedule
from tailora.stopping import StopRequest
from tailora.tasks import TASKS, LoadedModel
from tailora.tasks.calibration import (
    Prepared,
    cached_profile,
    device_of,
    measure_profile,
    prepare,
    start_profile,
    summarise,
)
from tailora.tasks.sharing import Shared
from tailora.tasks.streams import Streamed, check_streaming
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
    stop: StopRequest
    profiles: dict[str, Profile] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def score(self, model: Any) -> Evaluation:
        """Evaluate ``model`` on the evaluation examples."""
        with memory_advice(self.config, "evaluate"):
            return score(self.config, self.prepared, model)

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file of the folder, in the process that writes."""
        if processes.is_main():
            write_json(self.folder / name, value)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Keep the seconds of a stage, and say what to do where its memory runs out."""
        start = time.perf_counter()
        with memory_advice(self.config, stage):
            yield
        self.seconds[stage] = time.perf_counter() - start


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
    shared: Shared | None = None,
    progress: Progress | None = None,
    wait: float = 0.0,
) -> Path:
    """Do a run, or what is left of it.

    A finished run is returned at once.  A killed one continues from its last checkpoint with the plan it stored.

    Args:
        config: The run's configuration.
        profile: A profile of the base model; measured, or taken from the output folder's cache, when left out.
        base: The loaded base model (``load_base``); loaded when left out.
        shared: What the runs of one process share, instead of ``base``: models, tokenised data and profiles.
        progress: Called as ``progress(stage, done, total)``; first with ``("load", 0, 0)``, once the folder is this
            process's own and work begins.
        wait: Seconds to wait where another process is at work on the same run.

    Returns:
        The run's folder; ``status.json`` in it is written last.

    Raises:
        UserError: The configuration, data, model or recipe cannot be used, or the folder holds another run's files.
        TrainingError: Training diverged, or memory ran out.
        StorageError: The disk is full.
        Interrupted: Ctrl-C or SIGTERM; training stopped at a step with a checkpoint.
    """
    from tailora.planning import chosen_recipe

    recipe = chosen_recipe(config.recipe, config.allocation)
    folder, stop = run_folder(config), StopRequest()
    check_packages(config)
    check_schedule(config.training)
    check_streaming(config)
    check_pilot(config, recipe)
    processes.join(use_cpu=config.training.use_cpu)
    try:
        with stop.listening(), contextlib.ExitStack() as held:
            done = False
            if processes.is_main():
                check_folder(folder, config, recipe.name)
                done = is_done(config)
                if not done:
                    folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(run_lock(folder, wait=wait))
                    # Whoever held the lock before may have finished the run.
                    check_folder(folder, config, recipe.name)
                    done = is_done(config)
            if not processes.from_main(done):
                _unlocked(config, folder, recipe, stop, profile=profile, base=base, shared=shared, progress=progress)
    except Exception as error:
        if explained := explain(error, folder):
            raise explained from error
        raise
    return folder


def _unlocked(config: RunConfig, folder: Path, recipe: Recipe, stop: StopRequest, **given: Any) -> None:
    """Do a run in a folder that is this process's own, and write its status in any case."""
    main, started = processes.is_main(), time.perf_counter()
    peak_memory.forget()
    if main:
        clean(folder)
        (folder / "status.json").unlink(missing_ok=True)
    if given["progress"]:
        given["progress"]("load", 0, 0)
    try:
        check_harness(config)
        with memory_advice(config, "load"):
            shared: Shared | None = given["shared"]
            prepared = shared.prepare(config) if shared else prepare(config, given["base"])
        check_fit(config, prepared.base.model, prepared.base.tokenizer)
        profiles = shared.profiles if shared else None
        work = _Work(config, folder, recipe, prepared, given["progress"], stop, profiles)
        work.write("config.json", config.to_dict() | {"recipe": recipe.name})
        _stages(work, given["profile"], started)
        if main and config.training.push_to_hub:
            push_adapter(config, prepared, folder / "adapter")
    except BaseException as error:
        failed = isinstance(error, Exception)
        sentence = one_line(explain(error, folder) or error) if failed or str(error) else str(stop.error())
        # On a full disk not even the status can be written; the error itself still reaches the caller.
        with contextlib.suppress(OSError):
            if main:
                write_status(folder, config, "failed" if failed else "interrupted", sentence)
        raise
    if main:
        for place in (folder, folder / PILOT):
            shutil.rmtree(place / "checkpoints", ignore_errors=True)
        write_status(folder, config, "done", None)


def _stages(work: _Work, profile: Profile | None, started: float) -> None:
    """Profile, plan, train and evaluate; write every file but the status."""
    with work.timed("profile"):
        profile = profile or _profile(work)
        work.write("signals.json", summarise(profile, work.recipe.profiled_signals))
    pilot = _pilot(work, profile)
    with work.timed("plan"):
        plan = _plan(work, pilot.profile if pilot else profile)
    with work.timed("start"):
        start = start_profile(work.config, work.prepared, plan, progress=work.progress)
    fresh = work.prepared.base.fresh(work.config.seed)
    model = plan.apply(
        fresh.model,
        task_type=work.prepared.task.task_type,
        modules_to_save=list(fresh.new_modules) or None,
        seed=work.config.seed,
        profile=start,
    )
    work.write("counts.json", _counts(model, plan, work.prepared))
    with work.timed("mask"):
        mask = mask_of(work.config, plan, model, work.prepared, work.folder, progress=work.progress)
    with work.timed("train"):
        job = _job(work, fresh)
        if pilot and pilot.source:
            start_from(pilot, plan, model)
            job = replace(job, source=pilot.source)
        optimizer = _optimizer(work, model) if mask is None else masked_optimizer(work.config, plan, model, mask)
        trained = train(model, job, optimizer=optimizer)
    with work.timed("evaluate"):
        if work.progress:
            work.progress("evaluate", 0, 1)
        scored = work.score(model)
        if work.progress:
            work.progress("evaluate", 1, 1)
        asked = work.config.harness
        measured = measure(work.config, model, fresh.tokenizer, progress=work.progress) if asked else None
    if processes.is_main():
        save_adapter(model, fresh.tokenizer, work.folder / "adapter")
        _write_results(work, trained, scored, measured, started)


def _write_results(
    work: _Work, trained: Trained, scored: Evaluation, measured: Measured | None, started: float
) -> None:
    from tailora.environment import environment

    # An early stop has scored its last step already, before the best adapter was put back.
    rows = [row for row in trained.history if (row["step"], row["split"]) != (trained.steps, "eval")]
    write_rows(work.folder / "history.jsonl", [*rows, evaluation_row(trained.steps, scored)])
    texts = work.prepared.task.shown(work.config.task, work.prepared.splits.evaluation)
    if measured:
        measured.write(work.folder)
        scored, texts = measured.joined(scored), None if measured.primary else texts
    write_rows(work.folder / "predictions.jsonl", with_texts(scored.records, texts))
    write_json(work.folder / "scores.json", scored.scores())
    write_json(work.folder / "environment.json", environment() | {"data": work.prepared.splits.fingerprint})
    timings: dict[str, float] = {f"{stage}_s": round(seconds, 3) for stage, seconds in work.seconds.items()}
    timings["total_s"] = round(time.perf_counter() - started, 3)
    timings["peak_memory_mb"] = round(peak_memory.peak(), 1)
    timings["resumed_from_step"] = trained.resumed_from
    if work.config.training.validates:
        timings |= {"steps": trained.steps, "best_step": trained.best_step or trained.steps}
    write_json(work.folder / "timings.json", timings)


def _counts(model: Any, plan: Plan, prepared: Prepared) -> dict[str, Any]:
    """Count on the peft model what trains, and what tokenising cut; the base is the model without its head."""
    from tailora.adapters import count_parameters, own_weights
    from tailora.packed import count_weights

    counted: dict[str, Any] = {**count_parameters(model, own_weights(plan))}
    total = count_weights(prepared.base.model)
    # peft keeps a frozen copy of the head besides the one it trains, so the base is not simply all that is frozen.
    counted["base_params"] = total - counted["head_params"]
    if plan.kept_params is not None:
        # What trains is what counts; the rest of the adapter is stored beside it.
        counted |= {"adapter_params": plan.kept_params, "stored_adapter_params": counted["adapter_params"]}
    encoded = {"training": prepared.training, "evaluation": prepared.evaluation}
    reports = {name: getattr(examples, "report", None) for name, examples in encoded.items()}
    return counted | {f"{name}_examples": report.to_dict() for name, report in reports.items() if report is not None}


def _profile(work: _Work) -> Profile:
    """Measure the profile in the first process alone; the others read what it stored."""
    if not processes.is_main():
        processes.barrier()
    found = cached_profile(
        work.config, work.prepared, work.recipe.profiled_signals, progress=work.progress, known=work.profiles
    )
    if processes.is_main():
        processes.barrier()
    return found


def _pilot(work: _Work, profile: Profile) -> PilotRun | None:
    """Train the pilot where the recipe has one; its model is gone before the run's own is made."""
    if work.recipe.pilot is None:
        return None
    with work.timed("pilot"):
        fresh = work.prepared.base.fresh(work.config.seed)
        return pilot_of(work.config, work.recipe, work.prepared, profile, fresh, _job(work, fresh))


def _plan(work: _Work, profile: Profile) -> Plan:
    """Load the stored plan of a run that was cut off, or make and store one; the first process decides for all."""
    if processes.is_main():
        plan = _own_plan(work, profile)
        processes.barrier()
        return plan
    processes.barrier()
    return load_plan(work.folder, work.config, work.recipe.name)


def _own_plan(work: _Work, profile: Profile) -> Plan:
    from tailora.plans import plan

    place, config = work.folder / "plan.json", work.config
    if place.is_file():
        return load_plan(work.folder, config, work.recipe.name)
    # Written-down ranks cost what they cost unless a budget is asked for.
    unbounded = config.recipe == "explicit" and "budget" not in config.model_fields_set
    budget = None if unbounded else config.budget
    made = plan(profile, work.recipe, budget, config.placement, seed=config.seed)
    made.save(place)
    return made


def _optimizer(work: _Work, model: Any) -> torch.optim.Optimizer | None:
    from tailora.methods import METHODS, OptimizerSettings

    training, name = work.config.training, work.recipe.training.method
    # The optimizer must hold the tensors that train, so the model goes to its device first.
    model.to(device_of(work.config))
    settings = OptimizerSettings(training.learning_rate, training.weight_decay)
    optimizer = METHODS[name].optimizer(model, settings, work.recipe.training.options)
    if optimizer is None:
        return None
    if training.optim != "adamw_torch":
        raise UserError(
            f"training.optim={training.optim!r} cannot be used: the method {name!r} brings its own optimizer"
        )
    for group in optimizer.param_groups:
        if "betas" in group:
            group |= {"betas": (training.adam_beta1, training.adam_beta2), "eps": training.adam_epsilon}
    return optimizer


def _job(work: _Work, fresh: LoadedModel) -> Job:
    training, validation = hold_out(work.config, work.prepared.training)
    watched = replace(work.prepared, evaluation=validation)

    def validate(model: Any) -> Evaluation:
        with memory_advice(work.config, "evaluate"):
            return score(work.config, watched, model)

    return Job(
        task=work.prepared.task,
        tokenizer=fresh.tokenizer,
        examples=training.seeded(work.config.seed) if isinstance(training, Streamed) else training,
        settings=work.config.training,
        seed=work.config.seed,
        folder=work.folder,
        evaluate=work.score,
        progress=work.progress,
        validate=validate if validation else None,
        stop=work.stop,
    )


__all__ = ["evaluate_adapter", "execute", "is_done", "load_base", "measure_profile", "run_folder"]
