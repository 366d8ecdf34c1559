"""What all tasks with one output per text share: reading, tokenising, padding and the ``Trainer``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailora.config import TaskConfig
from tailora.data import Table
from tailora.data.encoding import Reported, long_texts, with_cuts
from tailora.evaluation.base import SHOWN, cut_text
from tailora.tasks.base import Examples, Splits, Task, by_length

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch


class TextTask(Task):
    """A task whose model reads a text, or a pair of texts, and gives one output."""

    task_type = "SEQ_CLS"

    def read(self, task: TaskConfig) -> Splits:
        """Read the data and check that the text columns hold texts; see ``Task.read``."""
        splits = super().read(task)
        for table in (splits.train, splits.evaluation):
            table.texts(task.text, "task.text")
            if task.text_pair is not None:
                table.texts(task.text_pair, "task.text_pair")
        return splits

    def shown(self, task: TaskConfig, table: Table) -> list[str] | None:
        """Return the text of each row, or both texts; see ``Task.shown``."""
        texts = table.texts(task.text, "task.text")
        if task.text_pair is None:
            return texts
        # Of a long pair the reader should see something of either text.
        half = SHOWN // 2 - 2
        pairs = zip(texts, table.texts(task.text_pair, "task.text_pair"), strict=True)
        return [f"{cut_text(first, half)} | {cut_text(second, half)}" for first, second in pairs]

    def collate(self, examples: Examples, tokenizer: Any) -> dict[str, torch.Tensor]:
        """Pad to the longest example; labels are ``[batch]``."""
        from transformers import DataCollatorWithPadding

        return dict(DataCollatorWithPadding(tokenizer)([dict(example) for example in examples]))

    def trainer(self, arguments: dict[str, Any], **parts: Any) -> tuple[type, Any, dict[str, Any]]:
        """Return ``transformers.Trainer`` and what it is built with; see ``Task.trainer``."""
        from transformers import Trainer, TrainingArguments

        return Trainer, TrainingArguments(**arguments), trainer_keywords(self, parts)

    def sorted_batches(
        self, tokenizer: Any, examples: Examples, batch_size: int
    ) -> tuple[list[int], Iterator[dict[str, torch.Tensor]]]:
        """Return row numbers by decreasing length, and the batches in that order."""
        order = by_length(examples)
        return order, self.batches(tokenizer, [examples[row] for row in order], batch_size)


def trainer_keywords(task: Task, parts: dict[str, Any]) -> dict[str, Any]:
    """Return what every trainer of transformers is built with.

    Args:
        task: Whose ``collate`` makes the batches.
        parts: ``model``, ``tokenizer`` and ``train``.

    Returns:
        Keyword arguments.
    """
    return {
        "model": parts["model"],
        "processing_class": parts["tokenizer"],
        "train_dataset": parts["train"],
        "data_collator": Collate(task, parts["tokenizer"]),
    }


class Collate:
    """A task's ``collate`` as the Trainer calls it.

    Args:
        task: The task.
        tokenizer: For padding.
    """

    def __init__(self, task: Task, tokenizer: Any) -> None:
        self.task, self.tokenizer = task, tokenizer

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return one padded batch."""
        return self.task.collate(examples, self.tokenizer)


def encode_texts(task: TaskConfig, table: Table, tokenizer: Any, labels: Sequence[int] | Sequence[float]) -> Reported:
    """Tokenise the text columns, cut to ``max_length``, and add one label to each row.

    Args:
        task: The task's configuration.
        table: The rows.
        tokenizer: The model's tokenizer.
        labels: One class number or score per row.

    Returns:
        One example per row, with the number of texts that were cut.
    """
    limit = min(task.max_length, tokenizer.model_max_length)
    texts = table.texts(task.text, "task.text")
    pairs = None if task.text_pair is None else table.texts(task.text_pair, "task.text_pair")
    tokens = tokenizer(texts, pairs, truncation=True, max_length=limit)
    keys = list(tokens)
    examples = [{**{key: tokens[key][row] for key in keys}, "labels": label} for row, label in enumerate(labels)]

    def whole(rows: list[int]) -> list[list[int]]:
        with long_texts(tokenizer):
            second = None if pairs is None else [pairs[row] for row in rows]
            return tokenizer([texts[row] for row in rows], second)["input_ids"]

    return with_cuts(examples, table, limit, whole)
