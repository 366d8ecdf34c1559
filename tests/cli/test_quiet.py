"""What libraries say of themselves while they are imported does not reach the user, unless --debug asks for it."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from tailora.cli.app import _NOISY


@pytest.fixture
def levels():
    """The levels before any command, and afterwards again."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.NOTSET)
    yield lambda: {logger.level for logger in loggers}
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


def test_only_errors_of_them_are_shown(command, levels):
    command("--debug recipes lora")
    assert levels() == {logging.NOTSET}
    command("recipes lora")
    assert levels() == {logging.ERROR}


def test_a_command_that_loads_a_model_says_its_own_lines_only(home, tmp_path):
    line = ["profile", home / "llama", "-d", home / "counting.txt", "--examples", "2", "-o", tmp_path / "p"]
    done = subprocess.run(
        [sys.executable, "-m", "tailora", *map(str, line)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [f"profiling {home / 'llama'}"]
