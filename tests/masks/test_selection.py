"""Choosing entries: always by index, always as many as asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import masks_slow as slow
from tailora.errors import UserError
from tailora.masks.selection import best, count_kept, select

# Few different values, so that ties are the rule.
SCORES = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 3.0]), min_size=1, max_size=12), min_size=1, max_size=5)


def tensors(rows):
    return {f"p{i}": torch.tensor(row) for i, row in enumerate(rows)}


def numbers(found, rows):
    """Return the chosen entries numbered over all tensors."""
    offsets = np.cumsum([0, *map(len, rows)])
    return [int(offsets[i]) + int(place) for i in range(len(rows)) for place in found[f"p{i}"]]


@given(SCORES, st.data())
def test_top_equals_sorting(rows, data):
    flat = [value for row in rows for value in row]
    nonzero = sum(value > 0 for value in flat)
    count = data.draw(st.integers(1, len(flat)))
    found, drawn = select(tensors(rows), count, "top", "after_warmup")
    assert drawn == max(count - nonzero, 0)
    chosen = numbers(found, rows)
    assert len(set(chosen)) == count
    if count > nonzero:
        with pytest.raises(UserError, match=f"only {nonzero} of {len(flat)} have a Fisher that is not zero"):
            select(tensors(rows), count, "top", "b_only")
        assert {i for i, value in enumerate(flat) if value > 0} <= set(chosen)
    else:
        assert chosen == slow.top(flat, count)
        assert numbers(select(tensors(rows), count, "top", "b_only")[0], rows) == chosen


@given(SCORES, st.data())
def test_reverse_equals_sorting(rows, data):
    flat = [value for row in rows for value in row]
    count = data.draw(st.integers(1, len(flat)))
    found, drawn = select(tensors(rows), count, "reverse", "after_warmup")
    chosen = numbers(found, rows)
    assert sorted(flat[i] for i in chosen) == sorted(flat)[:count]
    assert drawn == sum(flat[i] == 0 for i in chosen)
    # Of equal scores the earlier, of zeros any.
    lowest = slow.lowest([value or -1.0 for value in flat], count)
    assert [i for i in chosen if flat[i] > 0] == [i for i in lowest if flat[i] > 0]
    some = [i for i, value in enumerate(flat) if value > 0]
    if len(some) > 0:
        count = min(count, len(some))
        found, _ = select(tensors(rows), count, "reverse", "b_only")
        assert numbers(found, rows) == [some[i] for i in slow.lowest([flat[i] for i in some], count)]


@given(SCORES, st.data())
def test_every_tensor_gives_its_share(rows, data):
    total = sum(map(len, rows))
    count = data.draw(st.integers(1, total))
    quotas = slow.quotas([len(row) for row in rows], count)
    assert sum(quotas) == count
    found, drawn = select(tensors(rows), count, "top", "per_tensor", seed=3)
    short = 0
    for i, row in enumerate(rows):
        places, nonzero = found[f"p{i}"].tolist(), [j for j, value in enumerate(row) if value > 0]
        assert len(set(places)) == len(places) == quotas[i]
        if len(nonzero) >= quotas[i]:
            assert places == slow.top(row, quotas[i])
        else:
            assert set(nonzero) <= set(places)
            short += quotas[i] - len(nonzero)
    assert drawn == short
    again, _ = select(tensors(rows), count, "top", "per_tensor", seed=3)
    assert all(torch.equal(found[name], again[name]) for name in found)
    turned, _ = select(tensors(rows), count, "reverse", "per_tensor", seed=3)
    for i, row in enumerate(rows):
        assert sorted(row[j] for j in turned[f"p{i}"].tolist()) == sorted(row)[: quotas[i]]


@given(SCORES, st.integers(0, 5), st.data())
def test_random_is_seeded_and_private(rows, seed, data):
    count = data.draw(st.integers(1, sum(map(len, rows))))
    state = torch.get_rng_state()
    found, _ = select(tensors(rows), count, "random", seed=seed)
    assert torch.equal(state, torch.get_rng_state())
    assert len(set(numbers(found, rows))) == count
    again, _ = select(tensors(rows), count, "random", seed=seed)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_random_takes_every_entry_alike():
    hits = torch.zeros(10)
    for seed in range(400):
        found, _ = select({"p": torch.zeros(10)}, 3, "random", seed=seed)
        hits[found["p"].long()] += 1
    assert ((hits / 400 - 0.3).abs() < 0.1).all()


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=30), st.data())
def test_best_takes_the_earlier_of_equals(row, data):
    count = data.draw(st.integers(0, len(row)))
    assert best(torch.tensor(row), count).nonzero()[:, 0].tolist() == slow.top(row, count)


def test_per_tensor_without_filling_is_refused():
    scores = {"a": torch.zeros(4), "b": torch.ones(4)}
    with pytest.raises(UserError, match="'a' are asked for and only 0 of 4"):
        select(scores, 4, "per-tensor", "b_only")


def test_zeros_are_drawn_and_not_taken_by_position():
    hits = torch.zeros(12)
    for seed in range(300):
        scores = {"p0": torch.zeros(6), "p1": torch.cat([torch.ones(2), torch.zeros(4)])}
        found, drawn = select(scores, 4, "top", "after_warmup", seed=seed)
        assert drawn == 2
        hits[torch.tensor(numbers(found, [[0.0] * 6, [0.0] * 6]))] += 1
    assert hits[6] == hits[7] == 300
    rest = torch.cat([hits[:6], hits[8:]]) / 300
    assert ((rest - 0.2).abs() < 0.1).all()


@pytest.mark.parametrize(
    ("keep", "total", "wanted"), [(0.5, 9, 4), (1.0, 9, 9), (9, 9, 9), (1, 9, 1), (np.int64(3), 9, 3), (0.12, 9, 1)]
)
def test_keep(keep, total, wanted):
    assert count_kept(keep, total) == wanted


@pytest.mark.parametrize("keep", [0, 10, -1, 0.0, 1.5, float("nan"), -0.5, True, "half", None, 0.1])
def test_a_keep_that_cannot_be(keep):
    with pytest.raises(UserError, match="keep="):
        count_kept(keep, 9)
