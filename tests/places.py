"""Where the repository and the real test data lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def shared_path(*parts: str) -> Path:
    """Return a path under the real test data, or skip the test with the reason."""
    root = Path(os.environ.get("TAILORA_TEST_DATA", REPOSITORY / ".." / "shared")).resolve()
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data missing: {path} (set TAILORA_TEST_DATA to the folder that holds it)")
    return path
