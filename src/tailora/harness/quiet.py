"""Running lm-eval without its bars and logs, and without a trace in the process's random state."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

from tailora.surroundings import random_states_kept

SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
"""lm-eval's own seeds; they do not follow the run's seed, so that all runs answer the same questions."""


class Heard(logging.Handler):
    """Keeps warnings by their text, with numbers left out, and how often each came."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.counts: dict[str, list[Any]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        text = " ".join(record.getMessage().split())
        self.counts.setdefault(re.sub(r"\d+", "#", text), [text[:300], 0])[1] += 1

    def messages(self) -> list[dict[str, Any]]:
        """Return the first message of each kind and how many there were."""
        return [{"message": text, "count": count} for text, count in self.counts.values()]


@contextlib.contextmanager
def quietly() -> Iterator[Heard]:
    """Silence lm-eval and what it stands on; warnings of lm-eval are kept.

    Yields:
        What was said.
    """
    import datasets
    import transformers

    with _imported():
        import lm_eval.api.model
        import lm_eval.api.task
        import lm_eval.models.huggingface

    heard, logger = Heard(), logging.getLogger("lm_eval")
    state = logger.handlers, logger.propagate
    bars, loud = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    spoken = transformers.logging.get_verbosity()
    logger.handlers, logger.propagate = [heard], False
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    try:
        with contextlib.ExitStack() as held:
            # lm-eval has no switch for its bars.
            for module in (lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface):
                held.enter_context(mock.patch.object(module, "tqdm", _no_bar))
            held.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            # Some task files print; standard output is for results.
            held.enter_context(contextlib.redirect_stdout(io.StringIO()))
            yield heard
    finally:
        logger.handlers, logger.propagate = state
        transformers.logging.set_verbosity(spoken)
        datasets.logging.set_verbosity(loud)
        if bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _imported() -> Iterator[None]:
    """Keep what packages log when they are imported to themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def _no_bar(*arguments: Any, **named: Any) -> Any:
    from tqdm import tqdm

    return tqdm(*arguments, **{**named, "disable": True})


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Set lm-eval's seeds, and give the random states of Python, numpy and torch back afterwards."""
    import random

    import numpy as np
    import torch

    with random_states_kept():
        random.seed(SEEDS["random"])
        np.random.seed(SEEDS["numpy"])  # noqa: NPY002
        torch.manual_seed(SEEDS["torch"])
        yield
