"""The configuration of one run: what may be written, what it means, and its hash.

The training keys carry transformers' own names (``learning_rate``, ``max_steps``, ...), so nothing has to be learned
twice.  Reading a configuration touches no model and imports no torch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tailora.artifacts import content_hash
from tailora.budget import Budget
from tailora.config_files import (
    apply_overrides,
    check_plain,
    fingerprint_path,
    is_recipe_file,
    read_yaml,
    resolve_paths,
    world_size,
)
from tailora.errors import ConfigError, did_you_mean
from tailora.placement import parse as parse_placement


def _number(value: Any) -> Any:
    """Refuse ``true`` where a number is meant: Python would quietly take it for 1."""
    if isinstance(value, bool):
        raise ValueError("is true or false, but a number is expected")
    return value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


# Libraries below hold counts and seeds in 32 bits; a larger number would only fail later and less clearly.
PositiveInt = Annotated[int, BeforeValidator(_number), Field(ge=1, lt=2**31)]
NaturalInt = Annotated[int, BeforeValidator(_number), Field(ge=0, lt=2**32)]
PositiveFloat = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
NaturalFloat = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1, allow_inf_nan=False)]
Column = Annotated[str | int, BeforeValidator(_number)]
Text = Annotated[str, BeforeValidator(_text), Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskConfig(_Section):
    """What is learned, from which data.

    Attributes:
        kind: ``text-classification``, ``regression``, ``multiple-choice``, ``token-classification``, ``seq2seq``,
            ``image-classification`` or ``causal-lm``.
        name: Name for reports; the training file's folder or stem when left out.
        train: Data file, or hub id of a data set.
        evaluation: Data file or hub id that scores the run; without one, ``validation`` carves it out of training.
        config: Hub configuration name, such as ``sst2``.
        train_split: Hub split to train on.
        evaluation_split: Hub split to evaluate on.
        header: Whether csv and tsv files start with a line of column names.
        text: Column of the text (name, or number from 0 without a header); for causal-lm the prompt when
            ``text_pair`` is given.
        text_pair: Column of a second text; for causal-lm the completion, which alone then counts in the loss.
        label: Column of the class, the score (regression), the right answer (multiple-choice) or the tags.
        metric: The score that decides, such as ``matthews``; the task's usual one when left out.
        max_length: Longest sequence, in tokens; the block length for plain text.
        train_examples: Use at most this many training examples (drawn once, the same for every seed).
        eval_examples: Use at most this many evaluation examples.
        validation: Share of the training data that is carved out when it serves for evaluation.
        evaluate_on: ``evaluation``, ``validation`` (a share of the training data, never the evaluation file: for
            choosing learning rates), or ``auto`` (evaluation data if given).
    """

    kind: Literal[
        "text-classification",
        "regression",
        "multiple-choice",
        "token-classification",
        "seq2seq",
        "image-classification",
        "causal-lm",
    ]
    name: str = ""
    train: str = Field(min_length=1)
    evaluation: str | None = None
    config: str | None = None
    train_split: str = "train"
    evaluation_split: str = "validation"
    header: bool = True
    text: Column = "text"
    text_pair: Column | None = None
    label: Column = "label"
    metric: str | None = None
    max_length: Annotated[int, BeforeValidator(_number), Field(ge=2)] = 128
    train_examples: PositiveInt | None = None
    eval_examples: PositiveInt | None = None
    validation: Annotated[float, BeforeValidator(_number), Field(gt=0, lt=1, allow_inf_nan=False)] = 0.1
    evaluate_on: Literal["auto", "evaluation", "validation"] = "auto"

    @model_validator(mode="after")
    def _needs_evaluation(self) -> TaskConfig:
        if self.evaluate_on == "evaluation" and self.evaluation is None:
            raise ValueError("task.evaluate_on is 'evaluation' but task.evaluation is missing; name the data")
        return self

    @property
    def carves_validation(self) -> bool:
        """Whether the evaluation examples come out of the training data."""
        return self.evaluate_on == "validation" or self.evaluation is None


class CalibrationConfig(_Section):
    """The examples that a profile is measured on; they come from the training data.

    Attributes:
        examples: How many.
        batch_size: Examples per forward and backward pass; the signals do not depend on it.
        seed: Which examples, and the state of a new classification head; apart from the run's seed, so that all
            seeds share one profile.
    """

    examples: PositiveInt = 64
    batch_size: PositiveInt = 8
    seed: NaturalInt = 0


class TrainingConfig(_Section):
    """Training settings under transformers' own names.

    Attributes:
        learning_rate: Peak learning rate.
        max_steps: Optimizer steps; either this or ``num_train_epochs``.
        num_train_epochs: Passes over the training data; 1 when neither is given.
        per_device_train_batch_size: Examples per step and device.
        per_device_eval_batch_size: Examples per evaluation batch.
        gradient_accumulation_steps: Batches per optimizer step.
        lr_scheduler_type: A transformers schedule name.
        warmup_ratio: Share of the steps in which the learning rate rises.
        weight_decay: Decoupled weight decay.
        max_grad_norm: Gradient clipping; 0 switches it off.
        eval_steps: Evaluate every so many steps for the learning curve; only at the end when left out.
        logging_steps: Steps per row of the training loss.
        save_steps: Steps between checkpoints, which are what a killed run loses at most.
        gradient_checkpointing: Trade computing for memory.
        bf16: Mixed precision; where left out, on GPUs that support it and never on CPU.
        fp16: Mixed precision in half floats, for GPUs without bf16; never on CPU.
        use_cpu: Stay on the CPU even where a GPU is visible.
        optim: The optimizer, by transformers' name.
        adam_beta1: AdamW's memory of the gradient.
        adam_beta2: AdamW's memory of its square.
        adam_epsilon: AdamW's divisor at rest.
        validation_share: Share of the training examples held out for early stopping and the best checkpoint; never
            of the evaluation data.
        early_stopping_patience: Stop after so many validations (every ``eval_steps``) without an improvement.
        early_stopping_threshold: What counts as an improvement.
        load_best_model_at_end: Go back to the adapter of the best validation.
        metric_for_best_model: What a validation is judged by, ``loss`` or ``accuracy``.
        dataloader_num_workers: Processes that put batches together.
        dataloader_drop_last: Leave out the last, smaller batch of a pass.
        report_to: Trackers that transformers reports the training to, such as ``tensorboard``.
        push_to_hub: Push the adapter and its tokenizer to the hub when the run is done.
        hub_model_id: Where to, such as ``me/my-adapter``.
        hub_private_repo: Whether a new hub repository is private.
    """

    learning_rate: PositiveFloat = 2e-4
    max_steps: PositiveInt | None = None
    num_train_epochs: PositiveFloat | None = None
    per_device_train_batch_size: PositiveInt = 16
    per_device_eval_batch_size: PositiveInt = 32
    gradient_accumulation_steps: PositiveInt = 1
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"] = (
        "linear"
    )
    warmup_ratio: Share = 0.06
    weight_decay: NaturalFloat = 0.0
    max_grad_norm: NaturalFloat = 1.0
    eval_steps: PositiveInt | None = None
    logging_steps: PositiveInt = 10
    save_steps: PositiveInt = 100
    gradient_checkpointing: bool = False
    bf16: bool | None = None
    fp16: bool = False
    use_cpu: bool = False
    optim: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"] = "adamw_torch"
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: PositiveFloat = 1e-8
    validation_share: Annotated[float, BeforeValidator(_number), Field(gt=0, lt=1, allow_inf_nan=False)] = 0.1
    early_stopping_patience: PositiveInt | None = None
    early_stopping_threshold: NaturalFloat = 0.0
    load_best_model_at_end: bool = False
    metric_for_best_model: Literal["loss", "accuracy"] = "loss"
    dataloader_num_workers: NaturalInt = 0
    dataloader_drop_last: bool = False
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "comet_ml", "trackio", "swanlab"], ...] = ()
    push_to_hub: bool = False
    hub_model_id: Text | None = None
    hub_private_repo: bool | None = None

    @property
    def validates(self) -> bool:
        """Whether a share of the training examples is held out to stop early or to keep the best adapter."""
        return self.early_stopping_patience is not None or self.load_best_model_at_end

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingConfig:
        if self.bf16 and self.fp16:
            raise ValueError("training.bf16=true and training.fp16=true are both given; keep one")
        if self.validates and self.eval_steps is None:
            name = "load_best_model_at_end" if self.early_stopping_patience is None else "early_stopping_patience"
            raise ValueError(f"training.{name} needs training.eval_steps, the steps between validations; add it")
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("training.push_to_hub=true needs training.hub_model_id, such as me/my-adapter; add it")
        return self

    @model_validator(mode="after")
    def _one_duration(self) -> TrainingConfig:
        if self.max_steps is not None and self.num_train_epochs is not None:
            raise ValueError(
                f"training.max_steps={self.max_steps} and training.num_train_epochs={self.num_train_epochs:g} are "
                "both given; keep one"
            )
        return self


NOT_IN_HASH = (
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "dataloader_num_workers",
)
"""Training settings that do not influence the result."""


class RunConfig(_Section):
    """One recipe, one task, one budget, one seed, one learning rate.

    Attributes:
        model: Hub id or folder of the base model.
        revision: Hub revision of the model.
        trust_remote_code: Whether code that comes with the model may run.
        task: What is learned.
        recipe: Recipe name, or path of a recipe file.
        budget: Trainable adapter parameters, such as ``r=8``, ``2.4M``, ``0.5%``.
        placement: Which targets may get rank.
        allocation: Overrides for the recipe's allocation options.
        seed: Seed of the initialisation, the data order and the drop-out.
        calibration: What the profile is measured on.
        training: How it is trained.
        output: Folder that gets the run's folder.
    """

    model: str = Field(min_length=1)
    revision: str | None = None
    trust_remote_code: bool = False
    task: TaskConfig
    recipe: Text = "lora"
    budget: Text = "r=8"
    placement: Text = "all-linear"
    allocation: dict[str, Any] = Field(default_factory=dict)
    seed: NaturalInt = 0
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    output: str = Field(default="runs", min_length=1)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict with every value, defaults included."""
        return self.model_dump(mode="json")

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of everything that influences the result.

        Files and folders on this machine enter by their content, so a run keeps its identity when the data moves and
        gets a new one when the data changes.  The output folder and the name of the task do not enter.
        """
        facts = self.to_dict()
        del facts["output"], facts["task"]["name"]
        for name in NOT_IN_HASH:
            del facts["training"][name]
        if (processes := world_size()) > 1:
            # Every process takes per_device_train_batch_size examples, so their number changes what a step learns.
            facts["processes"] = processes
        facts["model"] = fingerprint_path(self.model)
        facts["recipe"] = fingerprint_path(self.recipe) if is_recipe_file(self.recipe) else self.recipe
        facts["task"]["train"] = fingerprint_path(self.task.train)
        facts["task"]["evaluation"] = self.task.evaluation and fingerprint_path(self.task.evaluation)
        return content_hash(facts)


def make_config(values: dict[str, Any], *, where: str = "configuration") -> RunConfig:
    """Check plain values and return the configuration.

    Args:
        values: Nested mapping, as read from YAML; it is not changed.
        where: What the values came from, for messages.

    Returns:
        The frozen configuration; ``task.name`` is filled in.

    Raises:
        ConfigError: The first thing wrong, as one sentence with the dotted key, the value and the way out.
        BudgetError: The budget cannot be read.
        PlacementError: The placement cannot be read.
    """
    check_plain(values, where)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_sentence(error, where)) from None
    # What can be refused without data or model is refused before either is touched.
    Budget.parse(config.budget)
    parse_placement(config.placement)
    if not config.task.name:
        config = config.model_copy(update={"task": config.task.model_copy(update={"name": _task_name(config.task)})})
    return config


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML configuration.

    Relative paths in the file are relative to the file; those in overrides to the current folder.

    Args:
        path: The YAML file.
        overrides: ``key=value`` strings with dotted keys, such as ``training.learning_rate=1e-3``.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: The file cannot be read, or a key or value is wrong.
    """
    path = Path(path)
    # The default output folder is relative to the file, like one that is written down.
    values = resolve_paths(
        {"output": RunConfig.model_fields["output"].default} | read_yaml(path), path.resolve().parent
    )
    changed = apply_overrides(values, overrides)
    return make_config(changed, where=str(path))


def _task_name(task: TaskConfig) -> str:
    path = Path(task.train)
    # glue/SST-2/train.tsv is better known by its folder than as "train".
    name = path.parent.name if path.stem.lower() in {"train", "training", "data"} and path.parent.name else path.stem
    return task.config or re.sub(r"[^\w.-]+", "-", name) or task.kind


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    model: Any = RunConfig
    for part in location:
        field = model.model_fields.get(part)
        model = field.annotation if field else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return list(model.model_fields)


def _sentence(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    location = tuple(part for part in first["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    key = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        hint = did_you_mean(str(location[-1]), known) or f"; known: {', '.join(sorted(known))}"
        return f"{where}: unknown key {key!r}{hint}"
    if first["type"] == "missing":
        return f"{where}: {key!r} is missing; add it or give it as {key}=..."
    message = first["msg"].removeprefix("Value error, ")
    if not location or (first["type"] == "value_error" and message.startswith(("task.", "training."))):
        return f"{where}: {message}"
    value = first["input"]
    shown = f"{type(value).__name__}" if isinstance(value, dict | list) else repr(value)
    # Union branches add their type names to the location; the user wrote only the key.
    key = re.sub(r"\.(str|int|float|bool|nullable.*)$", "", key)
    hint = ""
    if first["type"] == "literal_error" and isinstance(value, str):
        hint = did_you_mean(value, re.findall(r"'([^']+)'", message))
    message = message[0].lower() + message[1:]
    return f"{where}: {key}={shown} cannot be used: {message}{hint}"


__all__ = [
    "CalibrationConfig",
    "RunConfig",
    "TaskConfig",
    "TrainingConfig",
    "apply_overrides",
    "is_recipe_file",
    "load_config",
    "make_config",
    "resolve_paths",
]
