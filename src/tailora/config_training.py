"""The settings of profiling and training, and the checked kinds of numbers that all sections share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def number(value: Any) -> Any:
    """Refuse ``true`` where a number is meant: Python would quietly take it for 1."""
    if isinstance(value, bool):
        raise ValueError("is true or false, but a number is expected")
    return value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


# Libraries below hold counts and seeds in 32 bits; a larger number would only fail later and less clearly.
PositiveInt = Annotated[int, BeforeValidator(number), Field(ge=1, lt=2**31)]
NaturalInt = Annotated[int, BeforeValidator(number), Field(ge=0, lt=2**32)]
PositiveFloat = Annotated[float, BeforeValidator(number), Field(gt=0, allow_inf_nan=False)]
NaturalFloat = Annotated[float, BeforeValidator(number), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(number), Field(ge=0, lt=1, allow_inf_nan=False)]
Column = Annotated[str | int, BeforeValidator(number)]
Text = Annotated[str, BeforeValidator(_text), Field(min_length=1)]


Tracker = Literal["tensorboard", "wandb", "mlflow", "comet_ml", "trackio", "swanlab"]


def _trackers(value: Any) -> Any:
    """Accept one name, and transformers' ``none``, in place of a list."""
    return ([] if value == "none" else [value]) if isinstance(value, str) else value


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CalibrationConfig(Section):
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


class TrainingConfig(Section):
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
        metric_for_best_model: The score a validation is judged by: ``loss``, or one of the task's, as ``accuracy``.
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
    validation_share: Annotated[float, BeforeValidator(number), Field(gt=0, lt=1, allow_inf_nan=False)] = 0.1
    early_stopping_patience: PositiveInt | None = None
    early_stopping_threshold: NaturalFloat = 0.0
    load_best_model_at_end: bool = False
    metric_for_best_model: Text = "loss"
    dataloader_num_workers: NaturalInt = 0
    dataloader_drop_last: bool = False
    report_to: Annotated[tuple[Tracker, ...], BeforeValidator(_trackers)] = ()
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
