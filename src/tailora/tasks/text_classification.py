"""Text classification: a new head on an encoder or decoder, trained with transformers' ``Trainer``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailora.config import RunConfig, TaskConfig
from tailora.data import Labels, Table
from tailora.data.encoding import tell_cuts
from tailora.tasks.base import Examples, LoadedModel, Splits
from tailora.tasks.texts import TextTask, encode_texts

if TYPE_CHECKING:
    from tailora.evaluation import Evaluation


class TextClassification(TextTask):
    """One class per text, or per pair of texts."""

    primary = "accuracy"
    higher_is_better = True
    metrics = ("f1", "matthews")

    def read(self, task: TaskConfig) -> Splits:
        """Read the data and collect the classes of the training rows.

        Args:
            task: The task's configuration.

        Returns:
            The splits with their labels.

        Raises:
            DataError: A column is missing, there is one class only, or evaluation has a class that training lacks.
        """
        splits = super().read(task)
        labels = Labels.from_training(splits.train.column(task.label, "task.label"), task.train, task.label)
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
