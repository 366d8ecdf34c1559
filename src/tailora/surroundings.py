"""What belongs to the whole process and is lent for a while: random states, and how much transformers says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Give the global random states of Python, numpy and torch back afterwards, for libraries that seed them.

    Yields:
        Nothing.
    """
    import random

    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def transformers_hushed() -> Iterator[None]:
    """Let transformers report errors only, without progress bars.

    Yields:
        Nothing; how much it says is as before afterwards.
    """
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
