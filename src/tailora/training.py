"""Training through the library trainers, with a history, checkpoints that survive a kill, and a stop at NaN."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tailora import early_stopping, processes
from tailora.checkpoints import History, drop_poisoned, last_checkpoint, steps_of, write_rows
from tailora.config import TrainingConfig
from tailora.errors import TrainingError
from tailora.progress import Progress
from tailora.schedules import length_sampler
from tailora.stopping import StopRequest
from tailora.surroundings import random_states_kept
from tailora.takeover import pilot_steps, take_over

if TYPE_CHECKING:
    import datasets
    import torch

    from tailora.evaluation import Evaluation


class Trainable(Protocol):
    """What training needs to know of a task."""

    def trainer(self, arguments: dict[str, Any], **parts: Any) -> tuple[type, Any, dict[str, Any]]:
        """Return the library's trainer class, its argument object and its keyword arguments."""
        ...

    def dataset(self, examples: Any) -> datasets.Dataset:
        """Return tokenised examples as an in-memory data set."""
        ...


@dataclass(frozen=True)
class Job:
    """What one training needs besides the model.

    Attributes:
        task: The task.
        tokenizer: Its tokenizer.
        examples: Training examples.
        settings: Training settings.
        seed: Seed of the data order and the drop-out.
        folder: The run's folder; ``history.jsonl`` and ``checkpoints`` are written there.
        evaluate: Scores the model in training, every ``settings.eval_steps`` steps.
        progress: Told about every step.
        validate: Scores the model on held-out training examples, where the settings ask for it.
        stop: Looked at after every step; a request ends the training with a checkpoint.
        share: Share of the steps after which the training is stopped, its last checkpoint kept; ``None`` for all.
        source: A stopped training's last checkpoint, after which this one goes on with the weights that the model has.
    """

    task: Trainable
    tokenizer: Any
    examples: Sequence[dict[str, Any]]
    settings: TrainingConfig
    seed: int
    folder: Path
    evaluate: Callable[[Any], Evaluation] | None = None
    progress: Progress | None = None
    validate: Callable[[Any], Evaluation] | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    share: float | None = None
    source: Path | None = None

    def ends_at(self, steps: int) -> int:
        """Return the step after which nothing is left to do, of a schedule of so many steps."""
        return steps if self.share is None else pilot_steps(self.share, steps)

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"


@dataclass(frozen=True)
class Trained:
    """What a training did.

    Attributes:
        steps: Optimizer steps in all.
        resumed_from: The step of the checkpoint it continued from; 0 for a fresh start.
        history: The rows of ``history.jsonl``.
        best_step: The step whose adapter was put back in the end; 0 where it is the last one's.
    """

    steps: int
    resumed_from: int
    history: tuple[dict[str, Any], ...]
    best_step: int = 0


def train(model: Any, job: Job, *, optimizer: torch.optim.Optimizer | None = None) -> Trained:
    """Train a peft model in place, from the last whole checkpoint in the folder if there is one.

    The order of the examples depends on the seed alone, so all recipes of a seed see the same batches.  The global
    random states are put back afterwards.

    Args:
        model: The peft model; its trainable parameters change.
        job: Data, settings and places.
        optimizer: An optimizer over the model's parameters; the Trainer's AdamW when left out.

    Returns:
        Steps and history.

    Raises:
        TrainingError: The loss is no finite number; the message names the step.
        Interrupted: ``job.stop`` was asked for; a checkpoint of the step was written.
    """
    checkpoint = last_checkpoint(job.checkpoints)
    start = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    history = History(job.folder / "history.jsonl", until=start)
    if job.source is not None and not start:
        history.begin_with(job.source.parent.parent / "history.jsonl")
    if checkpoint and (
        job.ends_at(steps_of(checkpoint)) <= start or early_stopping.is_over(history.rows, job.settings)
    ):
        early_stopping.restore(model, checkpoint / "adapter_model.safetensors")
        steps = start
    else:
        steps = _steps(model, job, optimizer, history, checkpoint)
    if job.stop.number:
        raise job.stop.error("after the last step")
    best = 0
    if job.settings.load_best_model_at_end:
        best = early_stopping.restore_best(model, job.checkpoints, history.rows, job.settings)
    return Trained(steps, start, tuple(history.rows), best)


def _steps(
    model: Any, job: Job, optimizer: torch.optim.Optimizer | None, history: History, checkpoint: Path | None
) -> int:
    """Take the optimizer steps that are left; return the number of the last one."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    with random_states_kept(), warnings.catch_warnings(), job.stop.graceful(), _tracker_folder(job.folder):
        # transformers renames settings that trl still passes by their old names; nothing a user could act on.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft)\.")
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*label_smoothing_factor.*deprecated")
        trainer_class, arguments, keywords = job.task.trainer(
            _arguments(job, model), model=model, tokenizer=job.tokenizer, train=job.task.dataset(job.examples)
        )
        with _own_weights(model):
            trainer = _guarded(trainer_class)(
                args=arguments,
                optimizers=(optimizer, None),
                callbacks=[_callback(job, history)],
                **keywords,
            )
        # Both write to stdout, which belongs to data.
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        if checkpoint is None and job.source is not None:
            checkpoint = take_over(trainer, job.source, job.checkpoints)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state = trainer.state
    over = state.global_step >= job.ends_at(state.max_steps) or early_stopping.is_over(history.rows, job.settings)
    if not over:  # nothing but a request ends it sooner
        raise job.stop.error(f"at step {state.global_step} of {state.max_steps}, with a checkpoint")
    return int(state.global_step)


@contextlib.contextmanager
def _own_weights(model: Any) -> Iterator[None]:
    """Keep the trainable weights as they are: trl rounds those on a quantised base to bfloat16, and their steps too."""
    weights = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
    yield
    for parameter, data in weights:
        parameter.data = data.to(parameter.device)


@contextlib.contextmanager
def _tracker_folder(folder: Path) -> Iterator[None]:
    """Let TensorBoard write beside the results rather than among the checkpoints, which are removed in the end."""
    name = "TENSORBOARD_LOGGING_DIR"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(folder / "tensorboard")
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _callback(job: Job, history: History) -> Any:
    """Build the callback that keeps the history; the class needs transformers, which is slow to import."""
    from transformers import TrainerCallback

    class Curve(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                row = {"step": state.global_step, "split": "train", "loss": float(logs["loss"])}
                history.add(row | {"learning_rate": float(logs["learning_rate"])})

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            step, every = state.global_step, job.settings.eval_steps
            if job.progress:
                job.progress("train", step, state.max_steps)
            # The last step is scored by whoever called: no need to do it twice.
            if job.evaluate and every and step % every == 0 and step < state.max_steps:
                history.add(evaluation_row(step, job.evaluate(model)))
            if job.validate and every and (step % every == 0 or step == state.max_steps):
                history.add(early_stopping.validation_row(step, job.validate(model), job.settings))
                if early_stopping.best_and_stale(history.rows, job.settings)[0] == step and processes.is_main():
                    early_stopping.keep(model, job.checkpoints, step)
            over = job.validate is not None and early_stopping.is_over(history.rows, job.settings)
            over = over or (job.share is not None and step >= job.ends_at(state.max_steps))
            if over or processes.anywhere(bool(job.stop.number)):
                control.should_save = control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # Only now: until this checkpoint was whole, its predecessor's best might still have been needed.
            if job.validate and processes.is_main():
                early_stopping.forget(job.checkpoints, early_stopping.best_and_stale(history.rows, job.settings)[0])

    return Curve()


def evaluation_row(step: int, evaluation: Evaluation) -> dict[str, Any]:
    """Return the history row of an evaluation.

    Args:
        step: The optimizer step.
        evaluation: The scores.

    Returns:
        The row.
    """
    row = {"step": step, "split": "eval", "loss": evaluation.loss}
    accuracy = {} if evaluation.accuracy is None else {"accuracy": evaluation.accuracy}
    return row | accuracy | dict(evaluation.metrics)


@functools.cache
def _guarded(trainer_class: type) -> Any:
    """Derive a trainer that stops at the first loss that is no number and keeps to itself."""

    class Guarded(trainer_class):
        probed = False

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if self.label_smoother is not None and self.model.config.is_encoder_decoder:
                # Smoothing takes the labels away, from which the decoder's inputs would be made.
                given = self.model.prepare_decoder_input_ids_from_labels(labels=inputs["labels"])
                inputs = {**inputs, "decoder_input_ids": given}
            if not self.probed:
                self.probed = True
                items = kwargs.get("num_items_in_batch")
                joined = self.args.gradient_accumulation_steps * self.args.world_size > 1
                # trl's losses are its own, and right.
                if joined and items is not None and not trainer_class.__module__.startswith("trl."):
                    self.model_accepts_loss_kwargs = _counts_items(super().compute_loss, model, inputs, items)
            return super().compute_loss(model, inputs, *args, **kwargs)

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            dataset = self.train_dataset if train_dataset is None else train_dataset
            if self.args.train_sampling_strategy != "group_by_length":
                return super()._get_train_sampler(dataset)
            size = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return length_sampler()(
                size, dataset, model_input_name="input_ids", seed=self.args.data_seed or self.args.seed
            )

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if not math.isfinite(float(loss)):
                # state counts finished steps; the step at hand is not applied.
                step, rate = self.state.global_step + 1, self.args.learning_rate
                good = drop_poisoned(Path(self.args.output_dir))
                kept = f"; {good.name} is kept in {str(good.parent)!r}" if good else ""
                raise TrainingError(
                    f"the training loss became {float(loss)} at step {step}; lower training.learning_rate={rate:g} or "
                    f"training.max_grad_norm, or raise training.warmup_ratio{kept}"
                )
            return loss

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """Write none: checkpoints are temporary."""

        def _send_telemetry(self) -> None:
            """Send none: trl would report every training over the network."""

    return Guarded


def _counts_items(compute_loss: Callable[..., Any], model: Any, inputs: Any, items: Any) -> bool:
    """Tell whether a model's loss divides by the number of items it is told.

    The Trainer concludes it from a ``**kwargs`` in the model's signature, and then leaves the dividing to the model.
    Classifiers have the one and ignore the other: their loss and gradient would grow with every accumulated batch and
    every process.
    """
    from tailora.evaluation import evaluating

    with evaluating(model):
        once, twice = (compute_loss(model, dict(inputs), num_items_in_batch=items * k) for k in (1, 2))
    return float(once) != float(twice)


def _arguments(job: Job, model: Any) -> dict[str, Any]:
    """Translate the settings to ``TrainingArguments``."""
    import torch

    settings = job.settings
    on_cpu = settings.use_cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    fp16 = settings.fp16 and not on_cpu
    bf16 = not on_cpu and not fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if settings.bf16 is not None and not on_cpu:
        bf16 = settings.bf16
    duration = (
        {"max_steps": settings.max_steps}
        if settings.max_steps is not None
        else {"num_train_epochs": settings.num_train_epochs or 1.0}
    )
    same_name = (
        "learning_rate",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "lr_scheduler_type",
        "weight_decay",
        "max_grad_norm",
        "lr_scheduler_kwargs",
        "label_smoothing_factor",
        "neftune_noise_alpha",
        "train_sampling_strategy",
        "logging_steps",
        "logging_first_step",
        "save_steps",
        "save_total_limit",
        "optim",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "dataloader_num_workers",
        "dataloader_drop_last",
        "run_name",
    )
    return (
        duration
        | {name: getattr(settings, name) for name in same_name}
        | {
            # A fraction of the steps: transformers 5 folded warmup_ratio into warmup_steps.
            "warmup_steps": settings.warmup_ratio if settings.warmup_steps is None else settings.warmup_steps,
            "output_dir": str(job.checkpoints),
            "save_strategy": "steps",
            "eval_strategy": "no",
            "seed": job.seed,
            "data_seed": job.seed,
            "bf16": bf16,
            "fp16": fp16,
            "use_cpu": on_cpu,
            "report_to": list(settings.report_to) or "none",
            "disable_tqdm": True,
            # Otherwise a NaN would be replaced by the mean of the losses before it.
            "logging_nan_inf_filter": False,
            "dataloader_pin_memory": not on_cpu,
        }
    )


__all__ = ["Job", "Trainable", "Trained", "evaluation_row", "last_checkpoint", "train", "write_rows"]
