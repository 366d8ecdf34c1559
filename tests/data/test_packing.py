"""Packing: no token lost, order kept, labels aligned."""

from __future__ import annotations

import datasets
from hypothesis import given
from hypothesis import strategies as st
from trl.data_utils import pack_dataset

from tailora.data.packing import IGNORED, pack, packed

END = 9
TOKENS = st.lists(st.integers(0, END), min_size=1, max_size=12)


@st.composite
def examples(draw):
    result = []
    for ids in draw(st.lists(TOKENS, min_size=1, max_size=8)):
        marks = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        labels = [token if mark else IGNORED for token, mark in zip(ids, marks, strict=True)]
        result.append({"input_ids": ids, "labels": labels})
    return result


def flat(blocks, key):
    return [value for block in blocks for value in block[key]]


@given(examples(), st.integers(2, 10))
def test_no_token_is_lost_and_every_label_stays_with_its_token(rows, length):
    blocks = pack(rows, length, None)
    assert flat(blocks, "input_ids") == flat(rows, "input_ids")
    assert flat(blocks, "labels") == flat(rows, "labels")
    assert all(len(block["input_ids"]) == length for block in blocks[:-1])
    assert 1 <= len(blocks[-1]["input_ids"]) <= length
    assert all(len(block["input_ids"]) == len(block["labels"]) for block in blocks)


@given(examples(), st.integers(2, 10))
def test_ends_are_put_between_only_where_they_lack_and_never_count(rows, length):
    blocks = pack(rows, length, END)
    ids, labels = flat(blocks, "input_ids"), flat(blocks, "labels")
    at = 0
    for number, row in enumerate(rows):
        if number and END not in ids[max(at - 2, 0) : at]:
            assert (ids[at], labels[at]) == (END, IGNORED)
            at += 1
        assert ids[at : at + len(row["input_ids"])] == row["input_ids"]
        assert labels[at : at + len(row["input_ids"])] == row["labels"]
        at += len(row["input_ids"])
    assert at == len(ids)


@given(examples(), st.integers(2, 10))
def test_inputs_stay_as_they_were(rows, length):
    before = [{key: list(values) for key, values in row.items()} for row in rows]
    pack(rows, length, END)
    assert rows == before


def test_by_hand():
    rows = [{"input_ids": [1, 2], "labels": [IGNORED, 2]}, {"input_ids": [3, END], "labels": [3, END]}]
    rows.append({"input_ids": [4], "labels": [4]})
    assert pack(rows, 3, END) == [
        {"input_ids": [1, 2, END], "labels": [IGNORED, 2, IGNORED]},
        {"input_ids": [3, END, 4], "labels": [3, END, 4]},
    ]


def test_agrees_with_trl_where_every_example_ends_itself():
    rows = [{"input_ids": [*range(n), END], "labels": [IGNORED, *range(1, n), END]} for n in (3, 1, 7, 2, 5)]
    theirs = pack_dataset(datasets.Dataset.from_list(rows), 4, strategy="wrapped").to_list()
    assert pack(rows, 4, END) == [{key: row[key] for key in ("input_ids", "labels")} for row in theirs]


def test_a_block_is_there_as_soon_as_it_is_full():
    taken = []

    def rows():
        for number in range(100):
            taken.append(number)
            yield {"input_ids": [1, 2, END], "labels": [1, 2, END]}

    blocks = packed(rows(), 5, END)
    assert next(blocks)["input_ids"] == [1, 2, END, 1, 2]
    assert taken == [0, 1]
