"""Text classification: a new head on an encoder or decoder, trained with transformers' ``Trainer``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailora.config import RunConfig, TaskConfig
from tailora.data import Labels
from tailora.errors import ConfigError
from tailora.tasks.base import Examples, LoadedModel, Splits, Task, by_length

if TYPE_CHECKING:
    import torch

    from tailora.evaluation import Evaluation


class TextClassification(Task):
    """One class per text, or per pair of texts."""

    task_type = "SEQ_CLS"
    primary = "accuracy"
    higher_is_better = True

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
        for table in (splits.train, splits.evaluation):
            table.texts(task.text, "task.text")
            if task.text_pair is not None:
                table.texts(task.text_pair, "task.text_pair")
        labels = Labels.from_training(splits.train.column(task.label, "task.label"), task.train, task.label)
        labels.encode(splits.evaluation.column(task.label, "task.label"), splits.evaluation.source, task.label)
        return Splits(splits.train, splits.evaluation, labels)

    def load(self, config: RunConfig, splits: Splits) -> LoadedModel:
        """Load the model with a head of as many outputs as there are classes; see ``Task.load``."""
        from transformers import AutoModelForSequenceClassification

        from tailora.tasks.loading import load_model

        assert splits.labels is not None
        names = splits.labels.names
        loaded = load_model(
            config,
            AutoModelForSequenceClassification,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
            ignore_mismatched_sizes=True,
        )
        # The head always trains, also where the checkpoint brings one of the right size.
        heads = [name for name in ("classifier", "score") if hasattr(loaded.model, name)]
        modules = tuple(dict.fromkeys((*loaded.new_modules, *heads)))
        if not modules:
            kind = type(loaded.model).__name__
            raise ConfigError(f"model {config.model!r} ({kind}) has no classification head that can be trained")
        return LoadedModel(loaded.model, loaded.tokenizer, _trainable_units(loaded, modules), loaded.new_weights)

    def encode(self, task: TaskConfig, splits: Splits, tokenizer: Any) -> tuple[Examples, Examples]:
        """Tokenise, cut to ``max_length`` and number the labels; see ``Task.encode``."""
        assert splits.labels is not None
        limit = min(task.max_length, tokenizer.model_max_length)
        encoded = []
        for table in (splits.train, splits.evaluation):
            texts = table.texts(task.text, "task.text")
            pairs = None if task.text_pair is None else table.texts(task.text_pair, "task.text_pair")
            tokens = tokenizer(texts, pairs, truncation=True, max_length=limit)
            labels = splits.labels.encode(table.column(task.label, "task.label"), table.source, task.label)
            keys = list(tokens)
            encoded.append(
                [{**{key: tokens[key][row] for key in keys}, "labels": label} for row, label in enumerate(labels)]
            )
        return encoded[0], encoded[1]

    def collate(self, examples: Examples, tokenizer: Any) -> dict[str, torch.Tensor]:
        """Pad to the longest example; labels are ``[batch]``."""
        from transformers import DataCollatorWithPadding

        return dict(DataCollatorWithPadding(tokenizer)([dict(example) for example in examples]))

    def trainer(self, arguments: dict[str, Any], **parts: Any) -> tuple[type, Any, dict[str, Any]]:
        """Return ``transformers.Trainer`` and what it is built with; see ``Task.trainer``."""
        from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

        keywords = {
            "model": parts["model"],
            "processing_class": parts["tokenizer"],
            "train_dataset": parts["train"],
            "data_collator": DataCollatorWithPadding(parts["tokenizer"]),
        }
        return Trainer, TrainingArguments(**arguments), keywords

    def evaluate(
        self, model: Any, tokenizer: Any, examples: Examples, *, batch_size: int, labels: Labels | None = None
    ) -> Evaluation:
        """Return accuracy and mean loss; see ``Task.evaluate``."""
        from tailora.evaluation import classify

        order = by_length(examples)
        batches = self.batches(tokenizer, [examples[row] for row in order], batch_size)
        return classify(model, batches, order=order, names=labels.names if labels else None)


def _trainable_units(loaded: LoadedModel, modules: tuple[str, ...]) -> tuple[str, ...]:
    """Name the smallest modules that must train fully.

    A new pooler inside the encoder is named by its own path: training its whole parent would train the encoder.
    """
    units: list[str] = []
    for name in modules:
        inside = [weight for weight in loaded.new_weights if weight.split(".")[0] == name]
        backbone = name == loaded.model.base_model_prefix
        units += inside if backbone else [name]
    return tuple(dict.fromkeys(units))
