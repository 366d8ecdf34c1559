"""Token classification: one tag per word, read at the word's first token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailora.config import RunConfig, TaskConfig
from tailora.data import Labels, Table
from tailora.data.encoding import Reported, long_texts, tell_cuts, with_cuts
from tailora.errors import ConfigError, DataError
from tailora.evaluation.entities import OUTSIDE, marks_entities
from tailora.tasks.base import Examples, LoadedModel, Splits, Task, by_length
from tailora.tasks.texts import trainer_keywords

if TYPE_CHECKING:
    import torch

    from tailora.evaluation import Evaluation


class TokenClassification(Task):
    """A list of words (``task.text``) and a list of as many tags (``task.label``) per row."""

    task_type = "TOKEN_CLS"
    primary = "f1"
    higher_is_better = True
    metrics = ("accuracy", "entity_f1")

    def read(self, task: TaskConfig) -> Splits:
        """Read the data and collect the tags of the training rows.

        Args:
            task: The task's configuration.

        Returns:
            The splits with their tags.

        Raises:
            DataError: Words and tags do not match, there is one tag only, evaluation has one that training lacks, or
                entities are to be scored and the tags name none.
        """
        splits = super().read(task)
        _, tags = _words_and_tags(task, splits.train)
        labels = Labels.from_training((tag for row in tags for tag in row), task.train, task.label)
        _numbers(task, splits.evaluation, labels)
        if task.metric == "entity_f1" and not marks_entities(labels.names):
            odd = next((name for name in labels.names if name != OUTSIDE and not marks_entities([name])), OUTSIDE)
            raise DataError(
                f"task.metric='entity_f1' needs tags such as B-PER, I-PER and O, but {task.train!r} has {odd!r}; name "
                "the tags so, or choose f1"
            )
        return Splits(splits.train, splits.evaluation, labels)

    def shown(self, task: TaskConfig, table: Table) -> list[str] | None:
        """Return the words of each row; see ``Task.shown``."""
        return [" ".join(words) for words in _words_and_tags(task, table)[0]]

    def load(self, config: RunConfig, splits: Splits) -> LoadedModel:
        """Load the model with a head of as many outputs as there are tags; see ``Task.load``."""
        from transformers import AutoModelForTokenClassification

        from tailora.tasks.loading import class_arguments, load_model, with_head

        assert splits.labels is not None
        loaded = load_model(config, AutoModelForTokenClassification, **class_arguments(splits.labels.names))
        if not loaded.tokenizer.is_fast:
            raise ConfigError(
                f"the tokenizer of {config.model!r} cannot say which word a token belongs to; add its tokenizer.json"
            )
        return with_head(config, loaded)

    def encode(self, task: TaskConfig, splits: Splits, tokenizer: Any) -> tuple[Examples, Examples]:
        """Tokenise the words and put each tag on its word's first token; see ``Task.encode``."""
        assert splits.labels is not None
        if hasattr(tokenizer, "add_prefix_space"):
            # Byte-level tokenizers refuse words otherwise: each word must start as it does after a space.
            tokenizer.add_prefix_space = True
        training = _encode(task, splits.train, tokenizer, splits.labels)
        evaluation = _encode(task, splits.evaluation, tokenizer, splits.labels)
        tell_cuts(training, evaluation)
        return training, evaluation

    def collate(self, examples: Examples, tokenizer: Any) -> dict[str, torch.Tensor]:
        """Pad to the longest example; labels are ``[batch, length]`` with -100 where there is no tag."""
        from transformers import DataCollatorForTokenClassification

        return dict(DataCollatorForTokenClassification(tokenizer)([dict(example) for example in examples]))

    def trainer(self, arguments: dict[str, Any], **parts: Any) -> tuple[type, Any, dict[str, Any]]:
        """Return ``transformers.Trainer`` and what it is built with; see ``Task.trainer``."""
        from transformers import Trainer, TrainingArguments

        return Trainer, TrainingArguments(**arguments), trainer_keywords(self, parts)

    def evaluate(
        self, model: Any, tokenizer: Any, examples: Examples, *, batch_size: int, labels: Labels | None = None
    ) -> Evaluation:
        """Return F1 and accuracy over words, F1 over entities, and the loss per word; see ``Task.evaluate``."""
        from tailora.evaluation import tag

        assert labels is not None
        order = by_length(examples)
        batches = self.batches(tokenizer, [examples[row] for row in order], batch_size)
        return tag(model, batches, order=order, names=labels.names, primary=self.primary)


def _encode(task: TaskConfig, table: Table, tokenizer: Any, labels: Labels) -> Reported:
    words, _ = _words_and_tags(task, table)
    numbers = _numbers(task, table, labels)
    limit = min(task.max_length, tokenizer.model_max_length)
    tokens = tokenizer(words, is_split_into_words=True, truncation=True, max_length=limit)
    examples = []
    for row, own in enumerate(numbers):
        places = tokens.word_ids(row)
        # Only the first token of a word has a tag; the others would count a long word several times.
        targets = [
            own[word] if word is not None and (place == 0 or places[place - 1] != word) else -100
            for place, word in enumerate(places)
        ]
        if all(target == -100 for target in targets):
            raise DataError(
                f"{table.source!r}, row {table.number(row)} has no word within task.max_length={limit}; remove it"
            )
        examples.append({**{key: tokens[key][row] for key in tokens}, "labels": targets})

    def whole(rows: list[int]) -> list[list[int]]:
        with long_texts(tokenizer):
            return tokenizer([words[row] for row in rows], is_split_into_words=True)["input_ids"]

    return with_cuts(examples, table, limit, whole)


def _words_and_tags(task: TaskConfig, table: Table) -> tuple[list[list[str]], list[list[Any]]]:
    words, tags = table.column(task.text, "task.text"), table.column(task.label, "task.label")
    for row, (own, theirs) in enumerate(zip(words, tags, strict=True)):
        place = f"{table.source!r}, row {table.number(row)}"
        if not isinstance(own, list) or not own or not all(isinstance(word, str) for word in own):
            raise DataError(f"{place} has no list of words in column {str(task.text)!r}; set task.text to one that has")
        if not isinstance(theirs, list) or len(theirs) != len(own):
            count = len(theirs) if isinstance(theirs, list) else "no list of"
            raise DataError(f"{place} has {len(own)} words and {count} tags; give one tag per word (task.label)")
    return words, tags


def _numbers(task: TaskConfig, table: Table, labels: Labels) -> list[list[int]]:
    """Return each row's tags as numbers."""
    _, tags = _words_and_tags(task, table)
    known = {name: number for number, name in enumerate(labels.names)}
    found = []
    for row, own in enumerate(tags):
        names = [str(tag).strip() for tag in own]
        if missing := [name for name in names if name not in known]:
            raise DataError(
                f"{table.source!r}, row {table.number(row)} has the tag {missing[0]!r}, which the training data "
                f"lacks (it has {', '.join(labels.names[:10])}); correct the row or add training examples"
            )
        found.append([known[name] for name in names])
    return found
