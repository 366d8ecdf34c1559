"""Sequence to sequence: an encoder-decoder that writes one text for another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailora.config import RunConfig, TaskConfig
from tailora.data import Labels, Table, sample
from tailora.data.encoding import Reported, long_texts, tell_cuts, with_cuts
from tailora.errors import ConfigError, DataError
from tailora.tasks.base import Examples, LoadedModel, Splits, Task, by_length
from tailora.tasks.texts import trainer_keywords

if TYPE_CHECKING:
    import torch

    from tailora.evaluation import Evaluation

WRITTEN = 64
"""Evaluation examples for which text is generated: writing takes one step per token, scoring one in all."""


class Seq2Seq(Task):
    """A source text (``task.text``) and a target text (``task.text_pair``) per row."""

    task_type = "SEQ_2_SEQ_LM"
    primary = "loss"
    higher_is_better = False
    metrics = ("exact_match", "rouge_l")

    def read(self, task: TaskConfig) -> Splits:
        """Read the data and check the columns.

        Args:
            task: The task's configuration.

        Returns:
            The splits.

        Raises:
            ConfigError: ``task.text_pair`` is not given.
            DataError: A column is missing, or a target is empty.
        """
        if task.text_pair is None:
            raise ConfigError("task.text_pair is missing; seq2seq needs the column of the text to be written")
        splits = super().read(task)
        for table in (splits.train, splits.evaluation):
            table.texts(task.text, "task.text")
            for row, text in enumerate(table.texts(task.text_pair, "task.text_pair")):
                if not text.strip():
                    raise DataError(
                        f"{table.source!r}, column {str(task.text_pair)!r}, row {table.number(row)} is empty; give a "
                        "text to write"
                    )
        return splits

    def load(self, config: RunConfig, splits: Splits) -> LoadedModel:
        """Load the encoder-decoder; see ``Task.load``."""
        from transformers import AutoModelForSeq2SeqLM

        from tailora.tasks.loading import load_model

        return load_model(config, AutoModelForSeq2SeqLM)

    def shown(self, task: TaskConfig, table: Table) -> list[str] | None:
        """Return the source text of each row; see ``Task.shown``."""
        return table.texts(task.text, "task.text")

    def encode(self, task: TaskConfig, splits: Splits, tokenizer: Any) -> tuple[Examples, Examples]:
        """Tokenise both texts, each cut to ``max_length``; see ``Task.encode``."""
        training, evaluation = _encode(task, splits.train, tokenizer), _encode(task, splits.evaluation, tokenizer)
        tell_cuts(training, evaluation)
        return training, evaluation

    def collate(self, examples: Examples, tokenizer: Any) -> dict[str, torch.Tensor]:
        """Pad both sides; labels are ``[batch, target length]`` with -100 as padding."""
        from transformers import DataCollatorForSeq2Seq

        return dict(DataCollatorForSeq2Seq(tokenizer)([dict(example) for example in examples]))

    def trainer(self, arguments: dict[str, Any], **parts: Any) -> tuple[type, Any, dict[str, Any]]:
        """Return ``transformers.Seq2SeqTrainer`` and what it is built with; see ``Task.trainer``."""
        from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

        return Seq2SeqTrainer, Seq2SeqTrainingArguments(**arguments), trainer_keywords(self, parts)

    def evaluate(
        self, model: Any, tokenizer: Any, examples: Examples, *, batch_size: int, labels: Labels | None = None
    ) -> Evaluation:
        """Return the loss per token over all examples, and exact match and ROUGE-L over ``WRITTEN`` of them."""
        from tailora.evaluation import predict_tokens, write

        order = by_length(examples)
        batches = self.batches(tokenizer, [examples[row] for row in order], batch_size)
        scored = predict_tokens(model, batches, order=order, shift=False)
        # The same examples for every run, whatever its seed.
        chosen = set(sample(len(examples), WRITTEN))
        order = [row for row in order if row in chosen]
        longest = max(len(example["labels"]) for example in examples)
        return write(
            model,
            self.batches(tokenizer, [examples[row] for row in order], batch_size),
            scored=scored,
            texts={row: tokenizer.decode(examples[row]["labels"], skip_special_tokens=True) for row in order},
            order=order,
            tokenizer=tokenizer,
            max_new_tokens=longest,
            primary=self.primary,
        )


def _encode(task: TaskConfig, table: Table, tokenizer: Any) -> Reported:
    assert task.text_pair is not None
    limit = min(task.max_length, tokenizer.model_max_length)
    read = table.texts(task.text, "task.text")
    sources = tokenizer(read, truncation=True, max_length=limit)
    texts = table.texts(task.text_pair, "task.text_pair")
    targets = tokenizer(text_target=texts, truncation=True, max_length=limit)["input_ids"]
    keys = [key for key in ("input_ids", "attention_mask") if key in sources]
    examples = [{**{key: sources[key][row] for key in keys}, "labels": labels} for row, labels in enumerate(targets)]

    def whole(rows: list[int]) -> list[list[int]]:
        with long_texts(tokenizer):
            return tokenizer([read[row] for row in rows])["input_ids"]

    return with_cuts(examples, table, limit, whole)
