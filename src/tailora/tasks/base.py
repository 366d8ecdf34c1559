"""What every task provides: data, a model, batches, a trainer and an evaluation."""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from tailora.artifacts import content_hash
from tailora.config import RunConfig, TaskConfig
from tailora.data import Labels, Table, carve, read_table, sample
from tailora.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import datasets
    import torch

    from tailora.evaluation import Evaluation

Examples = Sequence[dict[str, Any]]
"""Encoded examples: ``input_ids`` (or ``pixel_values``), further model inputs, and ``labels`` (a list of tokens or
tags, one class number, or one score)."""


@dataclass(frozen=True)
class Splits:
    """The rows of a task before tokenisation.

    Attributes:
        train: Training rows.
        evaluation: Evaluation rows, never used for anything but scores.
        labels: The classes, where the task has some.
    """

    train: Table
    evaluation: Table
    labels: Labels | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the rows that are used, in order."""
        return content_hash([self.train.fingerprint, self.evaluation.fingerprint])


@dataclass(frozen=True)
class LoadedModel:
    """A base model with its tokenizer.

    Attributes:
        model: The model, in float32 unless its checkpoint says otherwise on a GPU.
        tokenizer: Pads on the right and has a padding token.
        new_modules: Top-level modules with weights that the checkpoint lacks, such as ``classifier``; they train
            fully.
        new_weights: Modules whose weights are newly initialised.
        first_answer: What a new head of one output says before it has learned anything: its bias, where it has one.
    """

    model: Any
    tokenizer: Any
    new_modules: tuple[str, ...] = ()
    new_weights: tuple[str, ...] = ()
    first_answer: float = 0.0

    def fresh(self, seed: int) -> LoadedModel:
        """Return a copy whose newly initialised weights depend on ``seed`` alone.

        Args:
            seed: Seed of a private random state; the global one is left as it was.

        Returns:
            A deep copy; this object stays as it is.
        """
        import torch

        model = copy.deepcopy(self.model)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            for name in self.new_weights:
                # The model's own rule for this kind of module, so a head starts as transformers would start it.
                module = model.get_submodule(name)
                model._init_weights(module)
                linear = isinstance(module, torch.nn.Linear) and module.out_features == 1
                if self.first_answer and linear and module.bias is not None:
                    module.bias.fill_(self.first_answer)
        return replace(self, model=model, tokenizer=copy.deepcopy(self.tokenizer))


class Task(abc.ABC):
    """One kind of task.

    Attributes:
        task_type: peft's name for it; ``None`` where peft has none.
        primary: The score that decides.
        higher_is_better: Which direction is better.
        metrics: Scores that ``task.metric`` may name besides ``primary`` and ``loss``.
    """

    task_type: str | None
    primary: str
    higher_is_better: bool
    metrics: tuple[str, ...] = ()

    def bound(self, task: TaskConfig) -> Self:
        """Return this task with the metric that decides.

        Args:
            task: The task's configuration.

        Returns:
            A copy; the registered task stays as it is.

        Raises:
            ConfigError: The task has no such metric.
        """
        known = list(dict.fromkeys((self.primary, *self.metrics, "loss")))
        metric = task.metric or self.primary
        if metric not in known:
            hint = did_you_mean(metric, known) or ";"
            raise ConfigError(f"task.metric={metric!r} is no score of {task.kind}{hint} known: {', '.join(known)}")
        copied = copy.copy(self)
        copied.primary, copied.higher_is_better = metric, metric != "loss"
        return copied

    def read(self, task: TaskConfig) -> Splits:
        """Read, cap and split the data.

        Args:
            task: The task's configuration.

        Returns:
            Disjoint training and evaluation rows, the same for every recipe and seed.

        Raises:
            DataError: The data cannot be read or lacks what the task needs.
        """
        training = read_table(task.train, header=task.header, config=task.config, split=task.train_split)
        if task.carves_validation:
            strata = self.strata(task, training)
            rows, held_out = carve(len(training), task.validation, task.train, strata=strata)
            training, evaluation = training.take(rows), training.take(held_out)
        else:
            assert task.evaluation is not None
            evaluation = read_table(
                task.evaluation, header=task.header, config=task.config, split=task.evaluation_split
            )
        training = training.take(sample(len(training), task.train_examples))
        evaluation = evaluation.take(sample(len(evaluation), task.eval_examples))
        return Splits(training, evaluation)

    def strata(self, task: TaskConfig, table: Table) -> list[Any] | None:
        """Return the class of each row, where a part of the data should hold every class.

        Args:
            task: The task's configuration.
            table: The rows.

        Returns:
            One class per row; ``None`` for tasks without classes per row.
        """
        return None

    def shown(self, task: TaskConfig, table: Table) -> list[str] | None:
        """Return what a reader of the predictions sees of each row.

        Args:
            task: The task's configuration.
            table: The evaluation rows, as ``read`` returned them.

        Returns:
            One text per example; ``None`` where examples are not rows.
        """
        return None

    @abc.abstractmethod
    def load(self, config: RunConfig, splits: Splits) -> LoadedModel:
        """Load the base model and its tokenizer.

        Args:
            config: The run's configuration.
            splits: The data, which says how many classes there are.

        Returns:
            The loaded model; use ``fresh`` before training it.

        Raises:
            ConfigError: The model cannot be loaded.
        """

    @abc.abstractmethod
    def encode(self, task: TaskConfig, splits: Splits, tokenizer: Any) -> tuple[Examples, Examples]:
        """Tokenise the training and the evaluation rows.

        Args:
            task: The task's configuration.
            splits: The rows.
            tokenizer: The model's tokenizer.

        Returns:
            Training and evaluation examples.

        Raises:
            DataError: A row cannot be used.
        """

    @abc.abstractmethod
    def collate(self, examples: Examples, tokenizer: Any) -> dict[str, torch.Tensor]:
        """Pad examples into one batch of tensors ``[batch, length]``, labels included."""

    @abc.abstractmethod
    def trainer(self, arguments: dict[str, Any], **parts: Any) -> tuple[type, Any, dict[str, Any]]:
        """Return the library's trainer class, its argument object and its keyword arguments.

        Args:
            arguments: Keyword arguments of ``transformers.TrainingArguments``.
            **parts: ``model``, ``tokenizer`` and ``train`` (a ``datasets.Dataset``).

        Returns:
            Class, arguments, further keyword arguments.
        """

    @abc.abstractmethod
    def evaluate(
        self, model: Any, tokenizer: Any, examples: Examples, *, batch_size: int, labels: Labels | None = None
    ) -> Evaluation:
        """Score every example.

        Args:
            model: The model, wrapped by peft or not; its mode and gradients are left as they were.
            tokenizer: For padding.
            examples: Tokenised examples.
            batch_size: Examples per forward pass; it does not change the scores.
            labels: Class names for the records.

        Returns:
            Scores and one record per example, in order.
        """

    def batches(self, tokenizer: Any, examples: Examples, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yield padded batches of ``examples`` in order."""
        for start in range(0, len(examples), batch_size):
            yield self.collate(examples[start : start + batch_size], tokenizer)

    def calibration(
        self, tokenizer: Any, examples: Examples, *, count: int, batch_size: int, seed: int
    ) -> list[dict[str, torch.Tensor]]:
        """Draw calibration batches from training examples.

        Args:
            tokenizer: For padding.
            examples: Training examples.
            count: How many to draw, without replacement.
            batch_size: Examples per batch.
            seed: Seed of a private generator.

        Returns:
            Batches that the model can be called with; similar lengths lie together to save padding.
        """
        rows = sample(len(examples), count, seed=seed)
        chosen = sorted((examples[row] for row in rows), key=lambda example: _length(example))
        return list(self.batches(tokenizer, chosen, batch_size))

    def dataset(self, examples: Examples) -> datasets.Dataset:
        """Return examples as an in-memory ``datasets.Dataset``."""
        import datasets

        return datasets.Dataset.from_list([dict(example) for example in examples])


def _length(example: dict[str, Any]) -> int:
    return len(example.get("input_ids", ()))  # images of one model are all of one size


def by_length(examples: Examples) -> list[int]:
    """Return row numbers by decreasing length: batches of like lengths, and the largest first to fail early."""
    return sorted(range(len(examples)), key=lambda row: -_length(examples[row]))
