"""Training examples that are read and tokenised while a model trains, for data that does not fit into memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from tailora.config import RunConfig, TaskConfig
from tailora.data import Encoded, Table, read_table, sample
from tailora.data.encoding import counts, encode_rows, long_texts
from tailora.data.formats import find_format, normalise
from tailora.data.packing import packed
from tailora.data.streams import Stream, open_stream, shuffled
from tailora.errors import ConfigError, DataError

HEAD = 256
"""Training rows that are read ahead: they tell the format, and what is cut."""

CHUNK = 64
"""Rows that are tokenised at a time."""

Example = dict[str, Any]


class Streamed(Encoded):
    """The first training examples, which are in memory, and the way to all of them.

    Attributes:
        report: What became of the first rows.
    """

    def __init__(self, head: Encoded, passes: Callable[[], Iterator[Example]], buffer: int, seed: int = 0) -> None:
        super().__init__(head, head.report)
        self._passes, self._buffer, self._seed = passes, buffer, seed

    def seeded(self, seed: int) -> Streamed:
        """Return the same examples in the order of another seed."""
        return Streamed(self, self._passes, self._buffer, seed)

    def front(self, count: int) -> list[Example]:
        """Return the first ``count`` examples in the order of the data, or all if there are fewer."""
        return list(itertools.islice(self._passes(), count))

    def endless(self) -> Iterator[Example]:
        """Yield the examples of one pass after the other, each pass in an order of its own.

        Passes never end for the Trainer: so it finds its place again by counting batches, however often the data was
        read.

        Yields:
            Tokenised examples; the order depends on the seed alone.

        Raises:
            DataError: A row cannot be used.
        """
        for number in itertools.count():
            yield from shuffled(self._passes(), self._buffer, (self._seed, number))


def check_streaming(config: RunConfig) -> None:
    """Refuse what cannot be done with a stream, before it is opened.

    Args:
        config: A run's configuration.

    Raises:
        ConfigError: The number of steps is missing, or a setting needs to know all examples.
    """
    if not config.task.streaming:
        return
    training = config.training
    if training.max_steps is None:
        raise ConfigError(
            "task.streaming is true but training.max_steps is missing: the length of a stream is not known; give the "
            "number of optimizer steps"
        )
    if training.validates:
        raise ConfigError(
            "task.streaming is true, so no share of the training examples can be held out for early stopping and the "
            "best checkpoint; leave training.early_stopping_patience and training.load_best_model_at_end out"
        )
    if getattr(training, "train_sampling_strategy", "random") == "group_by_length":
        raise ConfigError(
            "training.train_sampling_strategy=group_by_length needs all examples at once, but task.streaming is true; "
            "leave it out"
        )


def training_rows(task: TaskConfig) -> Stream:
    """Return the rows that train: those behind the rows that evaluate.

    Args:
        task: The task's configuration.

    Returns:
        At most ``train_examples`` rows.

    Raises:
        DataError: The data cannot be read row by row.
    """
    first = task.eval_examples if task.carves_validation and task.eval_examples else 0
    stop = None if task.train_examples is None else first + task.train_examples
    return open_stream(task.train, config=task.config, split=task.train_split).part(first, stop)


def read_heads(task: TaskConfig) -> tuple[Table, Table]:
    """Read the first training rows and all evaluation rows; nothing else is kept.

    Args:
        task: The task's configuration.

    Returns:
        Tables of the first ``HEAD`` training rows and of the evaluation rows; lines of text are one row together.

    Raises:
        DataError: There are too few rows, or one cannot be used.
    """
    stream = training_rows(task)
    training = next(stream.tables(HEAD), None)
    if training is None:
        behind = f" behind the {stream.first} of task.eval_examples" if stream.first else ""
        raise DataError(f"data {task.train!r} has no row to train on{behind}; give more data")
    if task.carves_validation:
        evaluation = next(stream.part(0, stream.first).tables(stream.first))
        return _as_text(training, stream), _as_text(evaluation, stream)
    assert task.evaluation is not None
    evaluation = read_table(task.evaluation, header=task.header, config=task.config, split=task.evaluation_split)
    if not stream.lines:
        evaluation = evaluation.take(sample(len(evaluation), task.eval_examples))
    return _as_text(training, stream), evaluation


def _as_text(table: Table, stream: Stream) -> Table:
    return Table({"text": ["".join(table.columns["text"])]}, table.source) if stream.lines else table


def stream_examples(task: TaskConfig, form: str, head: Encoded, tokenizer: Any, limit: int) -> Streamed:
    """Return the training examples of a task.

    Args:
        task: The task's configuration.
        form: How the rows are read; see ``data.formats``.
        head: The examples of the first rows.
        tokenizer: The model's tokenizer.
        limit: Longest example, or length of the blocks.

    Returns:
        The examples; none has been made.
    """
    stream = training_rows(task)

    def passes() -> Iterator[Example]:
        if stream.lines:
            return _blocks(stream, tokenizer, limit)
        examples = _rows(stream, task, form, tokenizer, limit)
        if not task.packing:
            return examples
        return (block for block in packed(examples, limit, tokenizer.eos_token_id) if counts(block))

    return Streamed(head, passes, task.shuffle_buffer)


def _rows(stream: Stream, task: TaskConfig, form: str, tokenizer: Any, limit: int) -> Iterator[Example]:
    for table in stream.tables(CHUNK):
        rows = normalise(table, find_format(table, form, task.text, task.text_pair))
        examples, _, _ = encode_rows(rows, tokenizer, None if task.packing else limit, task.completion_only)
        yield from examples


def _blocks(stream: Stream, tokenizer: Any, length: int) -> Iterator[Example]:
    """Yield blocks of running text; lines are tokenised some at a time, and a block goes on across them."""
    ids: list[int] = []
    for number, table in enumerate(stream.tables(CHUNK)):
        text = "".join(table.columns["text"])
        with long_texts(tokenizer):
            more = tokenizer(text, add_special_tokens=number == 0)["input_ids"]
        # Some tokenizers close every text with an end token, but this one goes on.
        ids += more[:-1] if number == 0 and more[-1:] == [tokenizer.eos_token_id] else more
        while len(ids) >= length:
            yield {"input_ids": ids[:length], "labels": ids[:length]}
            ids = ids[length:]
    if len(ids) > 1:
        yield {"input_ids": ids, "labels": list(ids)}
