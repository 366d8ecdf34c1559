"""Text classification: a new head on an encoder or decoder, trained with transformers' ``Trainer``."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from tailora.config import RunConfig, TaskConfig
from tailora.data import Labels, Table
from tailora.data.encoding import tell_cuts
from tailora.tasks.base import Examples, LoadedModel, Splits
from tailora.tasks.texts import TextTask, encode_texts

if TYPE_CHECKING:
    from tailora.evaluation import Evaluation

_LOG = logging.getLogger("tailora.data")

_MANY_NUMBERS = 50
"""With more classes than this that are all numbers, they are probably scores."""


class TextClassification(TextTask):
    """One class per text, or per pair of texts."""

    primary = "accuracy"
    higher_is_better = True
    metrics = ("f1", "matthews")

    def read(self, task: TaskConfig) -> Splits:
        """Read the data and collect the classes of the training rows; warn where they look like scores.

        Args:
            task: The task's configuration.

        Returns:
            The splits with their labels.

        Raises:
            DataError: A column is missing, there is one class only, or evaluation has a class that training lacks.
        """
        splits = super().read(task)
        labels = Labels.from_training(splits.train.column(task.label, "task.label"), task.train, task.label)
        # Before the evaluation rows, whose scores are easily some that no training row has.
        if notice := _score_notice(labels.names, splits.train.source, task.label):
            _LOG.warning("%s", notice)
        labels.encode(splits.evaluation.column(task.label, "task.label"), splits.evaluation.source, task.label)
        return Splits(splits.train, splits.evaluation, labels)

    def strata(self, task: TaskConfig, table: Table) -> list[Any] | None:
        """Return the class of each row; see ``Task.strata``."""
        return table.column(task.label, "task.label")

    def load(self, config: RunConfig, splits: Splits) -> LoadedModel:
        """Load the model with a head of as many outputs as there are classes; see ``Task.load``."""
        from transformers import AutoModelForSequenceClassification

        from tailora.tasks.loading import class_arguments, load_model, with_head

        assert splits.labels is not None
        arguments = class_arguments(splits.labels.names)
        return with_head(config, load_model(config, AutoModelForSequenceClassification, **arguments))

    def encode(self, task: TaskConfig, splits: Splits, tokenizer: Any) -> tuple[Examples, Examples]:
        """Tokenise, cut to ``max_length`` and number the labels; see ``Task.encode``."""
        assert splits.labels is not None
        encoded = []
        for table in (splits.train, splits.evaluation):
            labels = splits.labels.encode(table.column(task.label, "task.label"), table.source, task.label)
            encoded.append(encode_texts(task, table, tokenizer, labels))
        tell_cuts(*encoded)
        return encoded[0], encoded[1]

    def evaluate(
        self, model: Any, tokenizer: Any, examples: Examples, *, batch_size: int, labels: Labels | None = None
    ) -> Evaluation:
        """Return accuracy, F1, Matthews correlation and mean loss; see ``Task.evaluate``."""
        from tailora.evaluation import classify

        order, batches = self.sorted_batches(tokenizer, examples, batch_size)
        return classify(model, batches, order=order, names=labels.names if labels else None, primary=self.primary)


def _score_notice(names: tuple[str, ...], source: str, column: str | int) -> str:
    """Return a sentence where classes look like scores: all are numbers, with fractions or very many; else nothing."""
    numbers = [_number(name) for name in names]
    if not all(math.isfinite(number) for number in numbers):
        return ""
    fraction = next((name for name, number in zip(names, numbers, strict=True) if not number.is_integer()), None)
    if fraction is None and len(names) <= _MANY_NUMBERS:
        return ""
    return (
        f"{source!r}, column {str(column)!r} holds {len(names):,} different numbers, such as {fraction or names[-1]}, "
        "and text-classification makes a class of each; where they are scores, use the task kind regression"
    )


def _number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return math.nan
