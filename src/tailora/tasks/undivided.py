"""All training rows of a task, where nothing evaluates: what ``tailora profile`` measures on."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from tailora.config import TaskConfig
from tailora.errors import DataError
from tailora.tasks.base import Examples, Splits, Task

_FEW, _LONG = 8, 10_000


def undivided(task: TaskConfig) -> TaskConfig:
    """Return a task of which all training rows train: without evaluation data, a share of them would not.

    Args:
        task: The task's configuration; not one of streamed data.

    Returns:
        The same with the training rows as evaluation data, which is not to be used.
    """
    # All of them, as tasks refuse evaluation rows that are all alike.
    update = {"evaluation": task.train, "evaluation_split": task.train_split, "evaluate_on": "auto"}
    return task.model_copy(update=update | {"eval_examples": None})


def encode_undivided(task: Task, settings: TaskConfig, splits: Splits, tokenizer: Any) -> Examples:
    """Tokenise the training rows; a few of them stand in for those that evaluate, of which nothing is said.

    Args:
        task: The task.
        settings: Its configuration.
        splits: The rows that the task read of ``undivided(settings)``.
        tokenizer: The model's tokenizer.

    Returns:
        The training examples.

    Raises:
        DataError: A row cannot be used.
    """

    def of_training(record: logging.LogRecord) -> bool:
        return not (isinstance(record.args, tuple) and " evaluation examples " in str(record.args[-1:]))

    rows = splits.train.take(range(min(len(splits.train), _FEW)))
    short = {name: [_beginning(value) for value in values] for name, values in rows.columns.items()}
    log = logging.getLogger("tailora.data")
    log.addFilter(of_training)
    try:
        return task.encode(settings, replace(splits, evaluation=replace(rows, columns=short)), tokenizer)[0]
    except DataError:
        # Perhaps these few alone have nothing to predict.
        return task.encode(settings, replace(splits, evaluation=splits.train), tokenizer)[0]
    finally:
        log.removeFilter(of_training)


def _beginning(value: Any) -> Any:
    return value[:_LONG] if isinstance(value, str) else value
