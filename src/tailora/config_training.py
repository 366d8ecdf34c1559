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


def _without_eval(value: Any) -> Any:
    """Accept ``eval_accuracy``, as transformers calls it, for ``accuracy``."""
    return value.removeprefix("eval_") if isinstance(value, str) else value


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


class QuantizationConfig(Section):
    """How the frozen base is stored, under transformers' own names; exactly one of the first three is given.

    The adapter and the task head stay in float32.

    Attributes:
        load_in_4bit: 4 bits per weight through bitsandbytes (QLoRA).
        load_in_8bit: 8 bits per weight, and in its matrix products, through bitsandbytes.
        torchao: ``int8_weight_only``: 8 bits per weight through torchao.
        bnb_4bit_quant_type: ``nf4`` or ``fp4``; transformers' own default is ``fp4``, QLoRA's is ``nf4``.
        bnb_4bit_use_double_quant: Whether the 4-bit blocks' scales are quantised too.
        bnb_4bit_compute_dtype: What 4-bit weights are multiplied in.
        llm_int8_threshold: 8-bit inputs above this are multiplied in half floats.
        skip_modules: Further linear layers that stay as they are, by name or the end of it; heads and the output
            embedding always do.
    """

    load_in_4bit: bool = False
    load_in_8bit: bool = False
    torchao: Literal["int8_weight_only"] | None = None
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    llm_int8_threshold: NaturalFloat = 6.0
    skip_modules: tuple[Text, ...] = ()

    @property
    def package(self) -> str:
        """The package that stores the weights."""
        return "torchao" if self.torchao else "bitsandbytes"

    @property
    def key(self) -> str:
        """What was asked for, as it is written in a configuration."""
        if self.torchao:
            return f"quantization.torchao={self.torchao}"
        return f"quantization.load_in_{4 if self.load_in_4bit else 8}bit=true"

    @model_validator(mode="after")
    def _one_way(self) -> QuantizationConfig:
        given = [self.load_in_4bit, self.load_in_8bit, self.torchao is not None]
        if sum(given) != 1:
            raise ValueError(
                f"quantization.load_in_4bit, load_in_8bit and torchao: {sum(given)} of them are given; give exactly "
                "one, or leave the section out"
            )
        for name, value in self:
            if name.startswith("bnb_4bit") and value != type(self).model_fields[name].default and not self.load_in_4bit:
                raise ValueError(f"quantization.{name}={value} is for load_in_4bit only; leave it out")
        return self


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
        lr_scheduler_kwargs: What that schedule can be told besides, such as ``min_lr_rate``.
        warmup_ratio: Share of the steps in which the learning rate rises.
        warmup_steps: How many steps it rises, or their share where below 1; goes before ``warmup_ratio``.
        weight_decay: Decoupled weight decay.
        max_grad_norm: Gradient clipping; 0 switches it off.
        label_smoothing_factor: Share of a label that is spread over all classes or tokens; evaluation is not smoothed.
        neftune_noise_alpha: Noise on the input embeddings in training (Jain et al. 2023, arXiv 2310.05914).
        train_sampling_strategy: ``random``, ``sequential``, or ``group_by_length``, which pads less.
        eval_steps: Evaluate every so many steps for the learning curve; only at the end when left out.
        logging_steps: Steps per row of the training loss.
        logging_first_step: Whether the first step has a row of its own.
        save_steps: Steps between checkpoints, which are what a killed run loses at most.
        save_total_limit: How many checkpoints are kept while it trains; none is left when it is done.
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
        greater_is_better: Only to say what is known: false for ``loss`` and ``perplexity``, true for all others.
        dataloader_num_workers: Processes that put batches together.
        dataloader_drop_last: Leave out the last, smaller batch of a pass.
        report_to: Trackers that transformers reports the training to, such as ``tensorboard``.
        run_name: What trackers call the run.
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
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "constant",
        "constant_with_warmup",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = "linear"
    lr_scheduler_kwargs: dict[str, Any] = Field(default_factory=dict)
    warmup_ratio: Share = 0.06
    warmup_steps: NaturalFloat | None = None
    weight_decay: NaturalFloat = 0.0
    max_grad_norm: NaturalFloat = 1.0
    label_smoothing_factor: Share = 0.0
    neftune_noise_alpha: PositiveFloat | None = None
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = "random"
    eval_steps: PositiveInt | None = None
    logging_steps: PositiveInt = 10
    logging_first_step: bool = False
    save_steps: PositiveInt = 100
    save_total_limit: PositiveInt = 2
    gradient_checkpointing: bool = False
    bf16: bool | None = None
    fp16: bool = False
    use_cpu: bool = False
    optim: Literal[
        "adamw_torch",
        "adamw_torch_fused",
        "adafactor",
        "sgd",
        "adagrad",
        "rmsprop",
        "adamw_8bit",
        "paged_adamw_8bit",
        "paged_adamw_32bit",
    ] = "adamw_torch"
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: PositiveFloat = 1e-8
    validation_share: Annotated[float, BeforeValidator(number), Field(gt=0, lt=1, allow_inf_nan=False)] = 0.1
    early_stopping_patience: PositiveInt | None = None
    early_stopping_threshold: NaturalFloat = 0.0
    load_best_model_at_end: bool = False
    metric_for_best_model: Annotated[Text, BeforeValidator(_without_eval)] = "loss"
    greater_is_better: bool | None = None
    dataloader_num_workers: NaturalInt = 0
    dataloader_drop_last: bool = False
    report_to: Annotated[tuple[Tracker, ...], BeforeValidator(_trackers)] = ()
    run_name: Text | None = None
    push_to_hub: bool = False
    hub_model_id: Text | None = None
    hub_private_repo: bool | None = None

    @property
    def validates(self) -> bool:
        """Whether a share of the training examples is held out to stop early or to keep the best adapter."""
        return self.early_stopping_patience is not None or self.load_best_model_at_end

    @property
    def lower_is_better(self) -> bool:
        """Whether the better validation is the one with the lower score."""
        return self.metric_for_best_model in ("loss", "perplexity")

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingConfig:
        if self.bf16 and self.fp16:
            raise ValueError("training.bf16=true and training.fp16=true are both given; keep one")
        if self.validates and self.eval_steps is None:
            name = "load_best_model_at_end" if self.early_stopping_patience is None else "early_stopping_patience"
            raise ValueError(f"training.{name} needs training.eval_steps, the steps between validations; add it")
        if self.greater_is_better is self.lower_is_better:
            word = "lower" if self.lower_is_better else "higher"
            raise ValueError(
                f"training.greater_is_better={str(self.greater_is_better).lower()} contradicts "
                f"training.metric_for_best_model={self.metric_for_best_model}, of which the {word} is better; leave it "
                "out"
            )
        if self.warmup_steps is not None and self.warmup_steps >= 1 and self.warmup_steps % 1:
            raise ValueError(
                f"training.warmup_steps={self.warmup_steps:g} is no number of steps and no share below 1; round it"
            )
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
    "run_name",
    "save_total_limit",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "dataloader_num_workers",
)
"""Training settings that do not influence the result."""
