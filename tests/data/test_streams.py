"""Reading row by row: only what is needed, in the order that a seed says."""

from __future__ import annotations

import itertools
import json
import re

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailora.data import read_table
from tailora.data.streams import Stream, open_stream, shuffled
from tailora.errors import DataError


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def counted(rows, taken):
    """A stream of numbers that notes which ones were read."""

    def read():
        for number in range(rows):
            taken.append(number)
            yield {"number": number}

    return Stream("counted", read)


def test_nothing_is_read_that_was_not_asked_for():
    taken = []
    stream = counted(10_000, taken)
    tables = stream.part(20, None).tables(8)
    assert taken == []
    assert next(tables).columns["number"] == list(range(20, 28))
    assert next(tables).number(0) == 29
    assert taken == list(range(36))
    # A second reading starts anew.
    assert [row["number"] for row in stream.part(3, 5)] == [3, 4]


def test_a_file_is_read_line_by_line(tmp_path):
    # The second half of the file is broken, which only a reader that goes so far can notice.
    path = write(tmp_path / "rows.jsonl", [{"text": str(number)} for number in range(1000)])
    path.write_text(path.read_text() + "{broken\n", encoding="utf-8")
    stream = open_stream(str(path))
    assert [row["text"] for row in stream.part(2, 4)] == ["2", "3"]
    with pytest.raises(DataError, match=re.escape(f"data {str(path)!r}, line 1001 is not valid JSON")):
        list(stream)


@pytest.mark.parametrize("layout", ["jsonl", "parquet", "folder", "saved", "saved by split"])
def test_rows_are_those_of_the_whole_table(tmp_path, layout):
    rows = [{"prompt": f"p{number}", "completion": [{"role": "assistant", "content": "a"}]} for number in range(600)]
    data = datasets.Dataset.from_list(rows)
    if layout == "jsonl":
        path = write(tmp_path / "rows.jsonl", rows)
    elif layout == "parquet":
        path = tmp_path / "rows.parquet"
        data.to_parquet(path)
    elif layout == "folder":
        path = tmp_path / "many"
        write(path / "data" / "train-00000-of-00002.jsonl", rows[:100])
        write(path / "data" / "train-00001-of-00002.jsonl", rows[100:])
        write(path / "test.jsonl", rows[:1])
    else:
        path = tmp_path / "saved"
        (data if layout == "saved" else datasets.DatasetDict({"train": data})).save_to_disk(str(path))
    stream = open_stream(str(path))
    assert not stream.lines
    columns = {"prompt": [], "completion": []}
    for table in stream.tables(7):
        for name, values in table.columns.items():
            columns[name] += values
    assert columns == read_table(str(path)).columns


def test_lines_of_text(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\ntwo\n\nfour", encoding="utf-8")
    stream = open_stream(str(tmp_path / "a.txt"))
    assert stream.lines
    assert [row["text"] for row in stream] == ["one\n", "two\n", "\n", "four"]
    (tmp_path / "b.txt").write_text("five\n", encoding="utf-8")
    parts = open_stream(str(tmp_path))
    assert parts.lines
    assert "".join(row["text"] for row in parts) == "one\ntwo\n\nfourfive\n"


@given(st.integers(0, 60), st.integers(0, 20), st.integers(0, 3))
def test_shuffling_keeps_every_item_and_repeats(count, buffer, seed):
    order = list(shuffled(range(count), buffer, (seed, 0)))
    assert sorted(order) == list(range(count))
    assert order == list(shuffled(range(count), buffer, (seed, 0)))
    # An item cannot come earlier than its place allows.
    assert all(item <= place + max(buffer, 1) for place, item in enumerate(order))


def test_shuffling_depends_on_the_seed_and_looks_no_further_than_its_buffer():
    orders = {tuple(shuffled(range(50), 10, (seed, number))) for seed in range(2) for number in range(2)}
    assert len(orders) == 4
    assert list(shuffled(range(50), 0, (0, 0))) == list(range(50))
    taken = []
    items = (taken.append(number) or number for number in range(1000))
    list(itertools.islice(shuffled(items, 10, (0, 0)), 5))
    assert len(taken) == 15


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.jsonl", None, "does not exist; check the path"),
        ("a.csv", "text\na\n", "ends in '.csv' and cannot be read row by row; convert it to one of .jsonl"),
        ("a.jsonl", "[1]\n", "line 1 is no object with named fields"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', "row 2 lacks the field 'text', which row 1 has"),
        ("a.parquet", "no parquet", "is no parquet file or a broken one"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        list(open_stream(str(tmp_path / name)).tables(8))


def test_other_sentences(tmp_path):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        list(open_stream(str(tmp_path / "latin.txt")))
    write(tmp_path / "folder" / "train.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match="no split 'trian' that can be read row by row; did you mean 'train'"):
        open_stream(str(tmp_path / "folder"), split="trian")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="splits: none"):
        open_stream(str(tmp_path / "empty"))
