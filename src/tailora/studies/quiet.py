"""Silence for libraries that speak to every run of a study again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Let transformers report errors only: a warning repeated a hundred times hides the study's own lines.

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
