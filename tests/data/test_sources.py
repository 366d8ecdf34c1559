"""Parquet, saved data sets, folders and JSON shapes; and the exact sentence for each thing that can be wrong."""

from __future__ import annotations

import csv
import json

import datasets
import pytest

from tailora.data import read_table
from tailora.errors import DataError

ROWS = {"text": ["one", "two", "three"], "label": ["x", "y", "x"]}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def refused(source, sentence, **options):
    with pytest.raises(DataError) as caught:
        read_table(str(source), **options)
    assert str(caught.value) == sentence.replace("PATH", str(source))


def labelled(values=(0, 1, 0)):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    return datasets.Dataset.from_dict({"text": ["one", "two", "three"], "label": list(values)}, features=features)


def test_parquet_with_and_without_class_names(tmp_path):
    labelled().to_parquet(tmp_path / "named.parquet")
    datasets.Dataset.from_dict(ROWS).to_parquet(tmp_path / "plain.PARQUET")
    assert read_table(str(tmp_path / "named.parquet")).columns == ROWS
    assert read_table(str(tmp_path / "plain.PARQUET")).columns == ROWS


def test_parquet_is_not_read_through_the_name_of_its_folder(tmp_path):
    (tmp_path / "split=train").mkdir()
    datasets.Dataset.from_dict(ROWS).to_parquet(tmp_path / "split=train" / "a.parquet")
    assert set(read_table(str(tmp_path / "split=train" / "a.parquet")).columns) == {"text", "label"}


def test_saved_data_set_and_saved_splits(tmp_path):
    labelled().save_to_disk(tmp_path / "one")
    both = datasets.DatasetDict(train=labelled(), validation=labelled().select([1]), test=labelled((-1, -1, -1)))
    both.save_to_disk(tmp_path / "both")
    assert read_table(str(tmp_path / "one")).columns == ROWS
    assert read_table(str(tmp_path / "both")).columns == ROWS
    assert read_table(str(tmp_path / "both"), split="validation").columns == {"text": ["two"], "label": ["y"]}
    refused(
        tmp_path / "both",
        "data 'PATH' has no split 'validatoin'; did you mean 'validation'? splits: test, train, validation",
        split="validatoin",
    )
    refused(
        tmp_path / "both",
        "split 'test' of 'PATH' has no labels (-1); choose a labelled split, such as 'validation'",
        split="test",
    )


def test_broken_saved_data_set(tmp_path):
    labelled().save_to_disk(tmp_path / "one")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"no arrow at all")
    with pytest.raises(DataError, match=r"^data '.*one' cannot be loaded \(.*\); save it again with save_to_disk$"):
        read_table(str(tmp_path / "one"))


def test_tags_in_lists_become_names(tmp_path):
    tags = datasets.List(datasets.ClassLabel(names=["O", "B"]))
    features = datasets.Features({"words": datasets.List(datasets.Value("string")), "tags": tags})
    data = datasets.Dataset.from_dict({"words": [["a", "b"]], "tags": [[0, 1]]}, features=features)
    data.save_to_disk(tmp_path / "tagged")
    assert read_table(str(tmp_path / "tagged")).columns == {"words": [["a", "b"]], "tags": [["O", "B"]]}


def test_folder_with_a_file_per_split(tmp_path):
    write(tmp_path / "a" / "train.jsonl", '{"text": "one"}\n')
    write(tmp_path / "a" / "test.csv", "text\ntwo\n")
    write(tmp_path / "a" / "README.txt", "not data")
    assert read_table(str(tmp_path / "a")).columns == {"text": ["one"]}
    assert read_table(str(tmp_path / "a"), split="test").columns == {"text": ["two"]}
    for number, rows in enumerate((["one", "two"], ["three"])):
        part = tmp_path / "b" / "data" / f"train-0000{number}-of-00002.parquet"
        part.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict({"text": rows}).to_parquet(part)
    assert read_table(str(tmp_path / "b")).columns == {"text": ["one", "two", "three"]}
    refused(tmp_path / "b", "data 'PATH' has no split 'test'; splits: train", split="test")


def test_folder_that_holds_no_data(tmp_path):
    write(tmp_path / "model" / "weights.bin", "x")
    refused(
        tmp_path / "model",
        "data 'PATH' is a folder without data; give a data file, or a folder that save_to_disk wrote",
    )


def test_parts_of_one_split_must_have_the_same_columns(tmp_path):
    first = write(tmp_path / "a" / "train-0.csv", "text\none\n")
    second = write(tmp_path / "a" / "train-1.csv", "text,label\ntwo,x\n")
    refused(
        tmp_path / "a",
        f"data {second!r} and {first!r} belong to one split but only one has the column 'label'; give both the same "
        "columns",
    )


@pytest.mark.parametrize(
    "value",
    [
        [{"text": "one", "label": "x"}, {"text": "two", "label": "y"}, {"text": "three", "label": "x"}],
        {"data": [{"text": "one", "label": "x"}, {"text": "two", "label": "y"}, {"text": "three", "label": "x"}]},
        {"version": 1, "rows": [{"text": t, "label": v} for t, v in zip(ROWS["text"], ROWS["label"], strict=True)]},
        ROWS,
    ],
)
def test_json_as_list_under_one_key_and_by_column(tmp_path, value):
    assert read_table(write(tmp_path / "a.json", json.dumps(value, indent=1))).columns == ROWS


def test_json_lines_in_a_json_file(tmp_path):
    lines = [json.dumps({"text": t, "label": v}) for t, v in zip(ROWS["text"], ROWS["label"], strict=True)]
    assert read_table(write(tmp_path / "a.json", "\n".join(lines))).columns == ROWS


def test_long_fields_of_a_csv(tmp_path):
    before = csv.field_size_limit()
    table = read_table(write(tmp_path / "a.csv", "text\n" + "x" * 300_000 + "\n"))
    assert len(table.columns["text"][0]) == 300_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "", "data 'PATH' is empty; is it the right file?"),
        ("a.jsonl", " \n\n", "data 'PATH' is empty; is it the right file?"),
        ("a.csv", "text,label\n", "data 'PATH' has column names but no rows; is it the right file?"),
        ("a.csv", b"\xff\xfet\x00", "data 'PATH' is not UTF-8 text (byte 0); convert it, for example with iconv"),
        (
            "a.csv",
            'text,label\n"two\nlines",x\nthree\n',
            "data 'PATH', line 4 has 1 fields where 2 are expected; correct the line or the separator",
        ),
        (
            "a.tsv",
            "text\tlabel\none\tx\n\ntwo\tx\ty\n",
            "data 'PATH', line 4 has 3 fields where 2 are expected; correct the line or the separator",
        ),
        (
            "a.csv",
            'text,label\none,x\n"two,y\nthree,x\n',
            "data 'PATH', line 3 is not valid csv: unexpected end of data; correct the quotes",
        ),
        ("a.csv", "a,a\n1,2\n", "data 'PATH' has two columns called 'a'; rename one, or set task.header=false"),
        (
            "a.json",
            '[{"a": 1},\n {"a": }]',
            "data 'PATH', line 2 is not valid JSON: Expecting value; correct it or export it again",
        ),
        ("a.json", "[]", "data 'PATH' is an empty list; is it the right file?"),
        ("a.json", "null", "data 'PATH' holds null; a list of records is expected"),
        (
            "a.json",
            '{"a": 1}',
            "data 'PATH' is an object in which no single key holds a list of records; give a list of records, or one "
            "list per column",
        ),
        (
            "a.json",
            '[{"a": 1}, {"a": 1, "b": 2}]',
            "data 'PATH', record 1 lacks the field 'b', which record 2 has; add it (null stands for no value)",
        ),
        (
            "a.jsonl",
            '{"a": 1}\n\n{"b": 1}\n',
            "data 'PATH', line 1 lacks the field 'b', which line 3 has; add it (null stands for no value)",
        ),
        ("a.jsonl", '{"a": 1}\n\n[1]\n', "data 'PATH', line 3 is a list and no object with named fields; make it one"),
        ("a.jsonl", '{"a": 1}\n\n{"a"\n', "data 'PATH', line 3 is not valid JSON: Expecting ':' delimiter; fix it"),
        ("a.parquet", "PAR", "data 'PATH' is no parquet file or a broken one; write it again"),
        (
            "a.xlsx",
            "x",
            "data 'PATH' ends in '.xlsx'; give a file that ends in .csv, .tsv, .json, .jsonl, .ndjson, .txt, .parquet",
        ),
        (
            "data",
            "x",
            "data 'PATH' has no ending; give a file that ends in .csv, .tsv, .json, .jsonl, .ndjson, .txt, .parquet",
        ),
    ],
)
def test_the_sentence(tmp_path, name, content, sentence):
    refused(write(tmp_path / name, content), sentence)


def test_missing_files(tmp_path):
    for name in ("a.csv", "a.parquet", "folder"):
        refused(tmp_path / name, "data 'PATH' does not exist; check the path")
    refused("absent.parquet", "data 'PATH' does not exist; check the path")


def test_rows_keep_their_number(tmp_path):
    table = read_table(write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "b"}\n{"text": 3}\n'))
    with pytest.raises(DataError, match="row 3 holds a number and no text"):
        table.take([1, 2]).take([1]).texts("text", "task.text")


def test_nested_values_have_a_fingerprint(tmp_path):
    line = '{"turns": [{"role": "user", "score": NaN}]}\n'
    table = read_table(write(tmp_path / "a.jsonl", line))
    assert table.fingerprint == read_table(write(tmp_path / "b.jsonl", line)).fingerprint


@pytest.mark.parametrize(
    ("path", "rows", "columns"),
    [
        ("glue/CoLA/dev.tsv", 1043, 4),
        ("glue/SST-2/dev.tsv", 872, 2),
        ("glue/STS-B/train.tsv", 5749, None),
        ("glue/STS-B/dev.tsv", 1500, None),
        ("gsm8k/train.jsonl", 7473, 2),
        ("instruction/alpaca_random_9k.json", 9229, 3),
        ("commonsense/openbookqa/train.json", 4957, 4),
        ("text/tinystories_1000.json", 1000, 1),
    ],
)
def test_real_files(data_root, path, rows, columns):
    table = read_table(str(data_root / path), header="CoLA" not in path)
    assert len(table) == rows
    assert columns is None or len(table.columns) == columns
