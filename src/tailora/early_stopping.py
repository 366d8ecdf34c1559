"""Early stopping and the best adapter, judged on a share of the training examples.

All state is in the history's rows and in files under ``checkpoints``, so a killed run goes on as if nothing had been.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailora.artifacts import write_bytes
from tailora.config import RunConfig, TrainingConfig
from tailora.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from tailora.evaluation import Evaluation

SPLIT = "validation"
"""The ``split`` of the history's rows."""


def hold_out(config: RunConfig, examples: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Cut training examples into those that train and those that validate.

    The evaluation data is not touched: what chooses a checkpoint must not score it.

    Args:
        config: The run's configuration.
        examples: Its training examples.

    Returns:
        Training and validation examples, the same for every recipe and seed; the second empty where nothing validates.

    Raises:
        DataError: There are too few examples.
    """
    from tailora.data.splits import carve

    if not config.training.validates:
        return examples, ()
    # Neighbouring blocks of one text are not independent, so there the end is held out.
    blocks = config.task.kind == "causal-lm" and config.task.text_pair is None
    one_class_each = config.task.kind in ("text-classification", "image-classification")
    train, validation = carve(
        len(examples),
        config.training.validation_share,
        "training.validation_share",
        contiguous=blocks,
        strata=[example.get("labels") for example in examples] if one_class_each else None,
    )
    return [examples[row] for row in train], [examples[row] for row in validation]


def check_metric(settings: TrainingConfig, known: Sequence[str]) -> None:
    """Refuse a metric that validations will not have, before anything is computed.

    Args:
        settings: The training settings, which name the metric.
        known: The scores of the task.

    Raises:
        ConfigError: The task has no such metric.
    """
    metric = settings.metric_for_best_model
    if metric not in known:
        hint = did_you_mean(metric, known) or ";"
        raise ConfigError(
            f"training.metric_for_best_model={metric!r} is no score of this task{hint} known: {', '.join(known)}"
        )


def validation_row(step: int, evaluation: Evaluation, settings: TrainingConfig) -> dict[str, Any]:
    """Return the history row of a validation.

    Args:
        step: The optimizer step.
        evaluation: The scores.
        settings: The training settings, which name the metric.

    Returns:
        The row.

    Raises:
        ConfigError: The task has no such metric.
    """
    scores, metric = evaluation.scores(), settings.metric_for_best_model
    check_metric(settings, [name for name, value in scores.items() if isinstance(value, float)])
    return {"step": step, "split": SPLIT, "loss": evaluation.loss, metric: scores[metric]}


def best_and_stale(rows: Sequence[dict[str, Any]], settings: TrainingConfig) -> tuple[int, int]:
    """Return the step of the best validation (0 before the first) and the number of validations since.

    Args:
        rows: The history.
        settings: The training settings.

    Returns:
        The step, and how many validations did not improve on it.
    """
    metric = settings.metric_for_best_model
    sign = 1 if settings.lower_is_better else -1
    best, step, stale = float("inf"), 0, 0
    for row in rows:
        if row["split"] == SPLIT:
            value = sign * row[metric]
            better = value < best - settings.early_stopping_threshold
            best, step, stale = (value, row["step"], 0) if better else (best, step, stale + 1)
    return step, stale


def is_over(rows: Sequence[dict[str, Any]], settings: TrainingConfig) -> bool:
    """Tell whether early stopping ends the training.

    Args:
        rows: The history.
        settings: The training settings.

    Returns:
        Whether patience has run out.
    """
    patience = settings.early_stopping_patience
    return patience is not None and best_and_stale(rows, settings)[1] >= patience


def keep(model: Any, folder: Path, step: int) -> None:
    """Keep the trainable weights of a step.

    Args:
        model: The peft model.
        folder: The folder of checkpoints.
        step: The step.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    write_bytes(_file(folder, step), content)


def forget(folder: Path, but: int) -> None:
    """Remove the kept weights of all steps but one.

    Args:
        folder: The folder of checkpoints.
        but: The step to keep.
    """
    for path in folder.glob("best-*.safetensors"):
        if path != _file(folder, but):
            path.unlink(missing_ok=True)


def restore(model: Any, path: Path) -> None:
    """Put saved adapter weights into a model.

    Args:
        model: The peft model.
        path: What ``keep``, or a checkpoint, wrote.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(path))


def restore_best(model: Any, folder: Path, rows: Sequence[dict[str, Any]], settings: TrainingConfig) -> int:
    """Put the best validation's weights into a model.

    Args:
        model: The peft model.
        folder: The folder of checkpoints.
        rows: The history.
        settings: The training settings.

    Returns:
        The step they come from; 0 where there was no validation and nothing was changed.
    """
    step, _ = best_and_stale(rows, settings)
    if step:
        restore(model, _file(folder, step))
    return step


def _file(folder: Path, step: int) -> Path:
    return folder / f"best-{step}.safetensors"
