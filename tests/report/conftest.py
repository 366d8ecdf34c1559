"""Run folders for the report's tests, written once per session: reading is all that the tests do with them."""

from __future__ import annotations

import pytest
from report_fixtures import t5_targets, write_study


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def t5_study(tmp_path_factory):
    return write_study(
        tmp_path_factory.mktemp("t5"),
        seeds=1,
        targets=t5_targets(),
        kind="causal-lm",
        task="wikitext-2",
        model="t5-tiny",
    )
