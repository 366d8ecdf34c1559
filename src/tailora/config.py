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

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from tailora.artifacts import content_hash
from tailora.budget import Budget
from tailora.config_files import (
    apply_overrides,
    fingerprint_path,
    is_recipe_file,
    resolve_paths,
    world_size,
)
from tailora.config_harness import HarnessConfig
from tailora.config_training import (
    NOT_IN_HASH,
    CalibrationConfig,
    Column,
    NaturalInt,
    PositiveInt,
    QuantizationConfig,
    Section,
    Text,
    TrainingConfig,
    number,
)
from tailora.errors import ConfigError
from tailora.placement import parse as parse_placement
from tailora.validation import first_problem
from tailora.yaml_files import check_plain, read_yaml


class TaskConfig(Section):
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
        text_pair: Column of a second text; for causal-lm the completion.
        label: Column of the class, the score (regression), the right answer (multiple-choice) or the tags.
        metric: The score that decides, such as ``matthews``; the task's usual one when left out.
        max_length: Longest sequence, in tokens; the block length for plain text.
        train_examples: Use at most this many training examples (drawn once, the same for every seed).
        eval_examples: Use at most this many evaluation examples.
        validation: Share of the training data that is carved out when it serves for evaluation.
        evaluate_on: ``evaluation``, ``validation`` (a share of the training data, never the evaluation file: for
            choosing learning rates), or ``auto`` (evaluation data if given).
        format: How the rows of causal-lm data are read: ``text``, ``prompt-completion``, ``messages``, ``alpaca``,
            ``sharegpt``, or ``auto``, which goes by the columns.
        completion_only: Whether only completions and the assistant's turns count in the loss (causal-lm).
        packing: Whether training examples are put one after the other into blocks of ``max_length`` (causal-lm).
        streaming: Whether training data is read while it trains, for what does not fit into memory (causal-lm).  The
            first ``eval_examples`` rows then evaluate where ``evaluation`` is not given, and never train.
        shuffle_buffer: Examples of a stream among which the next one is drawn; 0 keeps the order of the data.
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
    max_length: Annotated[int, BeforeValidator(number), Field(ge=2)] = 128
    train_examples: PositiveInt | None = None
    eval_examples: PositiveInt | None = None
    validation: Annotated[float, BeforeValidator(number), Field(gt=0, lt=1, allow_inf_nan=False)] = 0.1
    evaluate_on: Literal["auto", "evaluation", "validation"] = "auto"
    format: Literal["auto", "text", "prompt-completion", "messages", "alpaca", "sharegpt"] = "auto"
    completion_only: bool = True
    packing: bool = False
    streaming: bool = False
    shuffle_buffer: NaturalInt = 1000

    @model_validator(mode="after")
    def _needs_evaluation(self) -> TaskConfig:
        if self.evaluate_on == "evaluation" and self.evaluation is None:
            raise ValueError("task.evaluate_on is 'evaluation' but task.evaluation is missing; name the data")
        return self

    @model_validator(mode="after")
    def _language_only(self) -> TaskConfig:
        if self.kind != "causal-lm":
            defaults = {"format": "auto", "completion_only": True, "packing": False, "streaming": False}
            for key, default in defaults.items():
                if getattr(self, key) != default:
                    value = str(getattr(self, key)).lower()
                    raise ValueError(f"task.{key} is {value} but task.kind is {self.kind!r}; it is for causal-lm only")
        return self

    @model_validator(mode="after")
    def _streams_evaluate(self) -> TaskConfig:
        if self.streaming and self.carves_validation:
            if self.eval_examples is None:
                raise ValueError(
                    "task.streaming is true but nothing evaluates: give task.evaluation, or in task.eval_examples the "
                    "number of rows at the front that evaluate and never train"
                )
            if self.validation != TaskConfig.model_fields["validation"].default:
                raise ValueError(
                    f"task.validation is {self.validation:g} but task.streaming is true: no share can be taken of data "
                    "whose length is unknown; leave it out, task.eval_examples says how many rows evaluate"
                )
        return self

    @property
    def carves_validation(self) -> bool:
        """Whether the evaluation examples come out of the training data."""
        return self.evaluate_on == "validation" or self.evaluation is None


class RunConfig(Section):
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
        quantization: How the frozen base is stored; in float32 when left out.
        harness: Tasks of lm-eval that score the adapter as well; none when left out.
        output: Folder that gets the run's folder.
        label: Name of the recipe in tables; the recipe's own when left out.
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
    quantization: QuantizationConfig | None = None
    harness: HarnessConfig | None = None
    output: str = Field(default="runs", min_length=1)
    label: str = ""

    @model_validator(mode="after")
    def _training_fits_the_task(self) -> RunConfig:
        kind, training = self.task.kind, self.training
        if kind == "regression" and training.label_smoothing_factor:
            raise ValueError(
                f"training.label_smoothing_factor={training.label_smoothing_factor:g} is for classes and tokens, but "
                "task.kind is 'regression'; leave it out"
            )
        if kind == "image-classification" and training.train_sampling_strategy == "group_by_length":
            raise ValueError(
                "training.train_sampling_strategy=group_by_length is for texts, but task.kind is "
                "'image-classification'; leave it out"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict with every value, defaults included; ``harness`` only where it is given."""
        # Runs without it keep the files and the hash they had before there was such a section.
        return self.model_dump(mode="json", exclude=None if self.harness else {"harness"})

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of everything that influences the result.

        Files and folders on this machine enter by their content, so a run keeps its identity when the data moves and
        gets a new one when the data changes.  The output folder, the label and the name of the task do not enter.
        """
        facts = self.to_dict()
        del facts["output"], facts["label"], facts["task"]["name"]
        for name in NOT_IN_HASH:
            del facts["training"][name]
        if (processes := world_size()) > 1:
            # Every process takes per_device_train_batch_size examples, so their number changes what a step learns.
            facts["processes"] = processes
        if self.harness is not None:
            facts["harness"] = self.harness.facts()
        facts["model"] = fingerprint_path(self.model)
        facts["recipe"] = fingerprint_path(self.recipe) if is_recipe_file(self.recipe) else self.recipe
        facts["task"]["train"] = fingerprint_path(self.task.train, pictures=True)
        facts["task"]["evaluation"] = self.task.evaluation and fingerprint_path(self.task.evaluation, pictures=True)
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
        raise ConfigError(first_problem(error, RunConfig, where)) from None
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


__all__ = [
    "CalibrationConfig",
    "HarnessConfig",
    "QuantizationConfig",
    "RunConfig",
    "TaskConfig",
    "TrainingConfig",
    "apply_overrides",
    "is_recipe_file",
    "load_config",
    "make_config",
    "resolve_paths",
]
