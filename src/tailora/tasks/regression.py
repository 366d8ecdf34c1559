"""Regression: one score per text or pair of texts, with the squared error as the loss."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tailora.config import RunConfig, TaskConfig
from tailora.data import Labels, Table
from tailora.data.encoding import tell_cuts
from tailora.errors import DataError
from tailora.tasks.base import Examples, LoadedModel, Splits
from tailora.tasks.texts import TextTask, encode_texts

if TYPE_CHECKING:
    from tailora.evaluation import Evaluation


class Regression(TextTask):
    """One number per text, or per pair of texts; trained on the numbers as they stand in the data."""

    primary = "pearson"
    higher_is_better = True
    metrics = ("spearman",)

    def read(self, task: TaskConfig) -> Splits:
        """Read the data and check the scores.

        Args:
            task: The task's configuration.

        Returns:
            The splits.

        Raises:
            DataError: A column is missing, a score is no finite number, or all scores of a split are the same.
        """
        splits = super().read(task)
        for table in (splits.train, splits.evaluation):
            found = scores(table, task.label)
            if min(found) == max(found):
                raise DataError(
                    f"{table.source!r}, column {str(task.label)!r} holds only the score {found[0]:g}; regression needs "
                    "scores that differ, so check task.label"
                )
        return splits

    def load(self, config: RunConfig, splits: Splits) -> LoadedModel:
        """Load the model with a head of one output, which starts at the mean of the training scores; see ``Task.load``.

        A head that starts at 0 where the scores have a mean of 2.7, as STS-B's, spends its first steps on the way
        there, and the adapter learns an offset instead of the task (``docs/experiments/allocation.md``, STS-B).
        """
        from transformers import AutoModelForSequenceClassification

        from tailora.tasks.loading import load_model, with_head

        loaded = load_model(
            config,
            AutoModelForSequenceClassification,
            num_labels=1,
            problem_type="regression",
            ignore_mismatched_sizes=True,
        )
        found = scores(splits.train, config.task.label)
        return replace(with_head(config, loaded), first_answer=math.fsum(found) / len(found))

    def encode(self, task: TaskConfig, splits: Splits, tokenizer: Any) -> tuple[Examples, Examples]:
        """Tokenise, cut to ``max_length`` and read the scores; see ``Task.encode``."""
        training, evaluation = (
            encode_texts(task, table, tokenizer, scores(table, task.label))
            for table in (splits.train, splits.evaluation)
        )
        tell_cuts(training, evaluation)
        return training, evaluation

    def evaluate(
        self, model: Any, tokenizer: Any, examples: Examples, *, batch_size: int, labels: Labels | None = None
    ) -> Evaluation:
        """Return Pearson and Spearman correlation and the mean squared error; see ``Task.evaluate``."""
        from tailora.evaluation import regress

        order, batches = self.sorted_batches(tokenizer, examples, batch_size)
        return regress(model, batches, order=order, primary=self.primary)


def scores(table: Table, column: str | int) -> list[float]:
    """Return a column of numbers.

    Args:
        table: The rows.
        column: Name or number of the column.

    Returns:
        One finite number per row.

    Raises:
        DataError: The column is missing, or a value is no finite number.
    """
    found = []
    for row, value in enumerate(table.column(column, "task.label")):
        try:
            # True is 1.0 to Python, but a column of truth values holds classes.
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            shown = "no score" if value is None or value == "" else f"the score {value!r}"
            raise DataError(
                f"{table.source!r}, column {str(column)!r}, row {table.number(row)} has {shown}; a finite number is "
                "expected, so correct the row or choose another column with task.label"
            )
        found.append(number)
    return found
