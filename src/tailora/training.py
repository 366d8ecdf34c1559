"""Training through the library trainers, with a history, checkpoints that survive a kill, and a stop at NaN."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tailora.artifacts import canonical_json, write_text
from tailora.config import TrainingConfig
from tailora.errors import TrainingError
from tailora.progress import Progress

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
    """

    task: Trainable
    tokenizer: Any
    examples: Sequence[dict[str, Any]]
    settings: TrainingConfig
    seed: int
    folder: Path
    evaluate: Callable[[Any], Evaluation] | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Trained:
    """What a training did.

    Attributes:
        steps: Optimizer steps in all.
        resumed_from: The step of the checkpoint it continued from; 0 for a fresh start.
        history: The rows of ``history.jsonl``.
    """

    steps: int
    resumed_from: int
    history: tuple[dict[str, Any], ...]


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
    """
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    checkpoint = last_checkpoint(job.folder / "checkpoints")
    start = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    history = _History(job.folder / "history.jsonl", until=start)
    with _random_states(), warnings.catch_warnings():
        # transformers renames settings that trl still passes by their old names; nothing a user could act on.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft)\.")
        trainer_class, arguments, keywords = job.task.trainer(
            _arguments(job, model), model=model, tokenizer=job.tokenizer, train=job.task.dataset(job.examples)
        )
        trainer = _guarded(trainer_class)(
            args=arguments,
            optimizers=(optimizer, None),
            callbacks=[_callback(job, history)],
            **keywords,
        )
        # Both write to stdout, which belongs to data.
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return Trained(int(trainer.state.global_step), start, tuple(history.rows))


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to the end.

    ``trainer_state.json`` is the last file of a checkpoint, so a process killed while writing leaves one that is
    missing or cut off.

    Args:
        folder: The folder of ``checkpoint-<step>`` folders.

    Returns:
        The checkpoint, or ``None``.
    """
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            whole = state["global_step"] == int(path.name.rpartition("-")[2])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if whole and all((path / name).is_file() for name in ("adapter_model.safetensors", "optimizer.pt")):
            found.append((state["global_step"], path))
    return max(found)[1] if found else None


class _History:
    """Rows of the learning curve, rewritten whole so that a reader never sees half a row."""

    def __init__(self, path: Path, *, until: int) -> None:
        self.path = path
        # What came after the checkpoint happens again.
        self.rows = [row for row in _read_rows(path) if row["step"] <= until] if until else []

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        write_rows(self.path, self.rows)


def write_rows(path: Path, rows: list[dict[str, Any]] | tuple[dict[str, Any], ...]) -> Path:
    """Write one JSON object per line, atomically.

    Args:
        path: Where.
        rows: The objects.

    Returns:
        The path.
    """
    return write_text(path, "".join(canonical_json(row) + "\n" for row in rows))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError):
        return []


def _callback(job: Job, history: _History) -> Any:
    """Build the callback that keeps the history; the class needs transformers, which is slow to import."""
    from transformers import TrainerCallback

    class Curve(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                row = {"step": state.global_step, "split": "train", "loss": float(logs["loss"])}
                history.add(row | {"learning_rate": float(logs["learning_rate"])})

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if job.progress:
                job.progress("train", state.global_step, state.max_steps)
            every = job.settings.eval_steps
            # The last step is scored by whoever called: no need to do it twice.
            if job.evaluate and every and state.global_step % every == 0 and state.global_step < state.max_steps:
                history.add(evaluation_row(state.global_step, job.evaluate(model)))

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
    return row if evaluation.accuracy is None else row | {"accuracy": evaluation.accuracy}


@functools.cache
def _guarded(trainer_class: type) -> Any:
    """Derive a trainer that stops at the first loss that is no number and keeps to itself."""

    class Guarded(trainer_class):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if not math.isfinite(float(loss)):
                # state counts finished steps; the step at hand is not applied.
                step, rate = self.state.global_step + 1, self.args.learning_rate
                raise TrainingError(
                    f"the training loss became {float(loss)} at step {step}; lower training.learning_rate={rate:g} or "
                    "training.max_grad_norm, or raise training.warmup_ratio"
                )
            return loss

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """Write none: checkpoints are temporary."""

        def _send_telemetry(self) -> None:
            """Send none: trl would report every training over the network."""

    return Guarded


def _arguments(job: Job, model: Any) -> dict[str, Any]:
    """Translate the settings to ``TrainingArguments``."""
    import torch

    settings = job.settings
    on_cpu = settings.use_cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    bf16 = not on_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
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
        "logging_steps",
        "save_steps",
    )
    return (
        duration
        | {name: getattr(settings, name) for name in same_name}
        | {
            # A fraction of the steps: transformers 5 folded warmup_ratio into warmup_steps.
            "warmup_steps": settings.warmup_ratio,
            "output_dir": str(job.folder / "checkpoints"),
            "save_strategy": "steps",
            "save_total_limit": 2,
            "eval_strategy": "no",
            "optim": "adamw_torch",
            "seed": job.seed,
            "data_seed": job.seed,
            "bf16": bf16,
            "use_cpu": on_cpu,
            "report_to": "none",
            "disable_tqdm": True,
            # Otherwise a NaN would be replaced by the mean of the losses before it.
            "logging_nan_inf_filter": False,
            "dataloader_pin_memory": not on_cpu,
        }
    )


@contextlib.contextmanager
def _random_states() -> Iterator[None]:
    """Put the global random states back: the Trainer seeds all of them."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
