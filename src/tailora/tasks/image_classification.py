"""Image classification: a new head on a vision transformer, trained with transformers' ``Trainer``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailora.config import RunConfig, TaskConfig
from tailora.data import Labels, Table, carve, sample
from tailora.tasks.base import Examples, LoadedModel, Splits, Task
from tailora.tasks.image_folders import ImageFile
from tailora.tasks.images import Preparation, read_images
from tailora.tasks.texts import Collate

if TYPE_CHECKING:
    import datasets
    import torch

    from tailora.evaluation import Evaluation


class ImageClassification(Task):
    """One class per image; the data is a folder with one folder per class, or an ``.npz`` file.

    The file has the arrays ``images`` and ``labels``; ``task.text`` and ``task.label`` name other ones.
    """

    task_type = None  # peft has no name for it
    primary = "accuracy"
    higher_is_better = True
    metrics = ("f1", "matthews")

    def read(self, task: TaskConfig) -> Splits:
        """Read, cap and split the images, and collect the classes of the training rows; see ``Task.read``."""
        training = read_images(task.train, task, task.train_split)
        if task.carves_validation:
            strata = self.strata(task, training)
            rows, held_out = carve(len(training), task.validation, task.train, strata=strata)
            training, evaluation = training.take(rows), training.take(held_out)
        else:
            assert task.evaluation is not None
            evaluation = read_images(task.evaluation, task, task.evaluation_split)
        training = training.take(sample(len(training), task.train_examples))
        evaluation = evaluation.take(sample(len(evaluation), task.eval_examples))
        labels = Labels.from_training(training.columns["label"], task.train, task.label)
        labels.encode(evaluation.columns["label"], evaluation.source, task.label)
        return Splits(training, evaluation, labels)

    def strata(self, task: TaskConfig, table: Table) -> list[Any] | None:
        """Return the class of each image; see ``Task.strata``."""
        return table.columns["label"]

    def shown(self, task: TaskConfig, table: Table) -> list[str] | None:
        """Return the name of each file; the images of an array have none; see ``Task.shown``."""
        images = table.columns["image"]
        return [image.name for image in images] if isinstance(images[0], ImageFile) else None

    def load(self, config: RunConfig, splits: Splits) -> LoadedModel:
        """Load the model with a head of as many outputs as there are classes; see ``Task.load``."""
        from dataclasses import replace

        from transformers import AutoModelForImageClassification

        from tailora.tasks.loading import class_arguments, load_weights, with_head

        assert splits.labels is not None
        loaded = load_weights(config, AutoModelForImageClassification, **class_arguments(splits.labels.names))
        # The preparation takes the tokenizer's place: it is what turns data into the model's inputs.
        return replace(with_head(config, loaded), tokenizer=Preparation.of(config, loaded.model))

    def encode(self, task: TaskConfig, splits: Splits, tokenizer: Any) -> tuple[Examples, Examples]:
        """Number the labels; images stay as they are, files as paths, until ``collate`` brings them to size."""
        assert splits.labels is not None
        encoded = []
        for table in (splits.train, splits.evaluation):
            labels = splits.labels.encode(table.columns["label"], table.source, task.label)
            images = [image.pixels for image in table.columns["image"]]
            encoded.append(
                [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
            )
        return encoded[0], encoded[1]

    def collate(self, examples: Examples, tokenizer: Any) -> dict[str, torch.Tensor]:
        """Resize and normalise; ``pixel_values`` are ``[batch, channels, height, width]``."""
        import torch

        pixels = torch.stack([tokenizer.prepare(example["pixel_values"]) for example in examples])
        return {"pixel_values": pixels, "labels": torch.tensor([int(example["labels"]) for example in examples])}

    def dataset(self, examples: Examples) -> datasets.Dataset:
        """Return the unprepared images as an in-memory ``datasets.Dataset`` that hands out arrays, or paths."""
        import datasets

        columns = {key: [example[key] for example in examples] for key in ("pixel_values", "labels")}
        data = datasets.Dataset.from_dict(columns)
        return data if isinstance(columns["pixel_values"][0], str) else data.with_format("numpy")

    def trainer(self, arguments: dict[str, Any], **parts: Any) -> tuple[type, Any, dict[str, Any]]:
        """Return ``transformers.Trainer`` and what it is built with; see ``Task.trainer``."""
        from transformers import Trainer, TrainingArguments

        keywords = {
            "model": parts["model"],
            "train_dataset": parts["train"],
            "data_collator": Collate(self, parts["tokenizer"]),
        }
        return Trainer, TrainingArguments(**arguments), keywords

    def evaluate(
        self, model: Any, tokenizer: Any, examples: Examples, *, batch_size: int, labels: Labels | None = None
    ) -> Evaluation:
        """Return accuracy, F1, Matthews correlation and mean loss; see ``Task.evaluate``."""
        from tailora.evaluation import classify

        batches = self.batches(tokenizer, examples, batch_size)
        return classify(model, batches, names=labels.names if labels else None, primary=self.primary)
