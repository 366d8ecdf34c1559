"""Regrouping examples by length changes neither the examples nor any mean over them."""

from __future__ import annotations

import pytest
import torch
from elementwise_cases import adapt, batches_for, build, error, lora
from hypothesis import given
from hypothesis import strategies as st

from tailora.errors import UserError
from tailora.signals.batching import count_examples, real_lengths, sort_by_length, take_rows, trim
from tailora.signals.elementwise import elementwise_fisher


def padded(lengths, width, pad=9):
    ids = torch.full((len(lengths), width), pad)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.arange(10, 10 + length) + 100 * row
    mask = (ids != pad).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}


def contents(batches):
    """Return the examples as a sorted list of what counts in them."""
    found = []
    for batch in batches:
        for row in range(count_examples(batch)):
            length = int(batch["attention_mask"][row].sum())
            found.append(
                (tuple(batch["input_ids"][row, :length].tolist()), tuple(batch["labels"][row, :length].tolist()))
            )
    return sorted(found)


@given(
    st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=5), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(0, 3),
)
def test_every_example_survives_and_padding_goes(lengths, batch_size, slack):
    given_batches = [padded(rows, max(rows) + slack) for rows in lengths]
    made = sort_by_length(given_batches, batch_size, pad_token_id=9)
    assert contents(made) == contents(given_batches)
    assert [count_examples(b) for b in made[:-1]] == [batch_size] * (len(made) - 1)
    widths = [b["input_ids"].shape[1] for b in made]
    assert widths == sorted(widths, reverse=True)
    for batch in made:
        assert batch["input_ids"].shape[1] == int(batch["attention_mask"].sum(1).max())
        hidden = batch["attention_mask"] == 0
        assert (batch["input_ids"][hidden] == 9).all()
        assert (batch["labels"][hidden] == -100).all()


def test_the_pad_token_is_found_in_the_padding():
    (made,) = sort_by_length([padded([2, 4], 4, pad=7), padded([3], 3, pad=7)], 3)
    assert made["input_ids"][made["attention_mask"] == 0].tolist() == [7, 7, 7]


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "gpt2"])
def test_a_fisher_does_not_depend_on_it(name):
    model, batches = adapt(build(name), lora(name)), batches_for(name, sizes=(4, 3, 5))
    plain, ordered = elementwise_fisher(model, batches), elementwise_fisher(model, sort_by_length(batches, 4))
    assert plain.examples == ordered.examples == 12
    assert ordered.one_by_one == ""
    assert error(ordered.tensors, plain.tensors) < 1e-10


def test_labels_on_padding_are_never_cut():
    batch = padded([2, 5], 8)
    batch["labels"][0, 6] = 3
    assert real_lengths(batch).tolist() == [7, 5]
    assert trim(batch)["labels"].shape == (2, 7)
    made = sort_by_length([batch], 1)
    assert [b["labels"].shape[1] for b in made] == [7, 5]


def test_decoder_parts_are_padded_on_their_own():
    one = {**padded([2, 6], 6), "labels": torch.tensor([[1, 2, 3, 4], [5, -100, -100, -100]])}
    two = {**padded([4], 4), "labels": torch.tensor([[1, 2]])}
    (made,) = sort_by_length([one, two], 3)
    rows = [[1, 2, 3, 4], [5, -100, -100, -100], [1, 2, -100, -100]]
    assert sorted(made["labels"].tolist()) == sorted(rows)
    assert made["input_ids"].shape == (3, 6)


def test_what_cannot_be_sorted():
    left = padded([2, 3], 4)
    left["attention_mask"] = left["attention_mask"].flip(1)
    assert real_lengths(left) is None
    assert trim(left)["input_ids"] is left["input_ids"]
    with pytest.raises(UserError, match="batch number 0 is not padded on the right"):
        sort_by_length([left], 2)
    odd = {**padded([2, 3], 4), "spans": torch.zeros(2, 4)}
    assert trim(odd)["input_ids"].shape == (2, 4)
    with pytest.raises(UserError, match="'spans' of batch number 0 cannot be regrouped"):
        sort_by_length([odd], 2)
    with pytest.raises(UserError, match="batch number 1 has the keys"):
        sort_by_length([padded([2], 2), {**padded([2], 2), "more": torch.zeros(1)}], 2)
    with pytest.raises(UserError, match="batch_size is 0"):
        sort_by_length([padded([2], 2)], 0)
    pictures = [{"pixel_values": torch.zeros(2, 3), "labels": torch.zeros(2)}]
    assert sort_by_length(pictures, 1) == pictures


def test_taking_rows():
    batch = {"input_ids": torch.arange(6).reshape(3, 2), "names": ["a", "b", "c"], "shared": torch.zeros(1, 5)}
    taken = take_rows(batch, [2, 0])
    assert taken["input_ids"].tolist() == [[4, 5], [0, 1]]
    assert taken["names"] == ["c", "a"]
    assert taken["shared"].shape == (1, 5)
    with pytest.raises(UserError, match="holds no tensor"):
        count_examples({"x": 1})
