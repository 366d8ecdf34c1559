"""What an allocator is given."""

from __future__ import annotations

import numpy as np
import pytest

from tailora.allocation.problem import Problem
from tailora.targets import Target

TARGETS = tuple(
    Target(name=f"layers.{i}.weight", kind="linear", shape=(8, 8), role="attention.query", depth=i) for i in range(2)
)


@pytest.mark.parametrize("width", [1, 3, 5])
def test_values_get_a_column_for_every_rank_to_deal(width):
    problem = Problem(TARGETS, np.full((2, 3), 16, dtype=np.int64))
    given = np.arange(2.0 * width).reshape(2, width) + 1
    found = problem.per_rank(given)
    assert (found.shape, found.dtype) == ((2, 3), np.float64)
    np.testing.assert_array_equal(found[:, : min(width, 3)], given[:, :3])
    assert not found[:, width:].any(), "what was not measured is worth nothing"


def test_a_signal_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="signal 'fisher' is needed to allocate and the source holds none"):
        Problem(TARGETS, np.full((2, 3), 16, dtype=np.int64)).signal("fisher")
