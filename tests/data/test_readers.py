"""Local files: every kind, and every way they can be wrong."""

from __future__ import annotations

import json

import pytest

from tailora.data import read_table
from tailora.errors import DataError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\n"one, ""two""",x\nthree,y\n'),
        ("a.csv", '\ufefftext,label\r\n"one, ""two""",x\r\nthree,y\r\n'),
        ("a.tsv", 'text\tlabel\none, "two"\tx\nthree\ty\n'),
        ("a.json", json.dumps([{"text": 'one, "two"', "label": "x"}, {"text": "three", "label": "y"}])),
        ("a.json", json.dumps({"text": ['one, "two"', "three"], "label": ["x", "y"]})),
        ("a.jsonl", '{"text": "one, \\"two\\"", "label": "x"}\n\n{"text": "three", "label": "y"}\n'),
    ],
)
def test_same_rows_from_every_kind(tmp_path, name, content):
    table = read_table(write(tmp_path / name, content))
    assert table.columns == {"text": ['one, "two"', "three"], "label": ["x", "y"]}
    assert len(table) == 2


def test_fingerprint_ignores_name_and_format(tmp_path):
    first = read_table(write(tmp_path / "a.csv", "text,label\none,x\n"))
    second = read_table(write(tmp_path / "b.jsonl", '{"label": "x", "text": "one"}\n'))
    third = read_table(write(tmp_path / "c.csv", "text,label\none,y\n"))
    assert first.fingerprint == second.fingerprint != third.fingerprint


def test_unpaired_quotes_and_odd_line_ends_stay_inside_a_tsv_row(tmp_path):
    table = read_table(write(tmp_path / "a.tsv", 'text\tlabel\nan "open quote\t0\na\u2028b\x0bc\t1\n'))
    assert table.columns["text"] == ['an "open quote', "a\u2028b\x0bc"]


def test_no_header_numbers_the_columns(tmp_path):
    table = read_table(write(tmp_path / "a.tsv", "gj04\t1\t\tOur friends.\ngj04\t0\t*\tThem friends.\n"), header=False)
    assert table.texts(3, "task.text") == ["Our friends.", "Them friends."]
    assert table.column(1, "task.label") == ["1", "0"]


def test_text_and_lists_of_strings_have_a_text_column(tmp_path):
    assert read_table(write(tmp_path / "a.txt", "one\ntwo\n")).columns == {"text": ["one\ntwo\n"]}
    assert read_table(write(tmp_path / "a.json", '["one", "two"]')).columns == {"text": ["one", "two"]}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.tsv", "text\tlabel\n", "no rows"),
        ("a.csv", "text,label\none\n", "line 2 has 1 fields where 2"),
        ("a.csv", "text,text\none,two\n", "two columns called 'text'"),
        ("a.csv", b"text\ncaf\xe9\n", "not UTF-8 text \\(byte 8\\)"),
        ("a.json", "{", "line 1 is not valid JSON"),
        ("a.json", "3", "holds a number"),
        ("a.json", "[]", "empty list"),
        ("a.json", '{"a": [1], "b": [1, 2]}', "different lengths"),
        ("a.json", '[{"a": 1}, {"b": 1}]', "record 1 lacks the field 'b', which record 2 has"),
        ("a.jsonl", '{"a": 1}\n{"a"\n', "line 2 is not valid JSON"),
        ("a.jsonl", '{"a": 1}\n3\n', "line 2 is a number and no object"),
        ("a.parquet", "x", "no parquet file or a broken one"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, content, words):
    with pytest.raises(DataError, match=words) as caught:
        read_table(write(tmp_path / name, content))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_table(str(tmp_path / "no.csv"))
    with pytest.raises(DataError, match="is a folder"):
        read_table(str(tmp_path))


def test_missing_column_offers_the_nearest(tmp_path):
    table = read_table(write(tmp_path / "a.csv", "sentence,label\none,x\n"))
    with pytest.raises(DataError, match=r"no column 'sentnce'; did you mean 'sentence'\? columns: sentence, label"):
        table.texts("sentnce", "task.text")


def test_column_without_text(tmp_path):
    table = read_table(write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": null}\n'))
    with pytest.raises(DataError, match="row 2 holds null and no text"):
        table.texts("text", "task.text")


def test_hub_reader_with_a_local_builder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    import datasets

    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    write(folder / "validation.jsonl", '{"text": "c", "label": 1}\n')
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    from tailora.data.hub import read_hub

    assert read_hub(str(folder), None, "validation") == {"text": ["c"], "label": [1]}
    with pytest.raises(DataError, match="no split 'validatoin'; did you mean 'validation'"):
        read_hub(str(folder), None, "validatoin")


def test_hub_class_labels_become_names(monkeypatch):
    import datasets

    from tailora.data.hub import read_hub

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    hidden = datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=features)
    sets = datasets.DatasetDict(train=data, test=hidden)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: sets)
    assert read_hub("org/set", None, "train")["label"] == ["good", "bad"]
    with pytest.raises(DataError, match="has no labels"):
        read_hub("org/set", None, "test")


def test_unreachable_hub_is_a_sentence(monkeypatch):
    import datasets

    from tailora.data.hub import read_hub

    def fail(*args, **kwargs):
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"'org/set' cannot be loaded \(no route\)"):
        read_hub("org/set", None, "train")


def test_real_glue_files(data_root):
    cola = read_table(str(data_root / "glue" / "CoLA" / "train.tsv"), header=False)
    assert len(cola) == 8551
    assert len(set(cola.column(1, "label"))) == 2
    sst2 = read_table(str(data_root / "glue" / "SST-2" / "train.tsv"))
    assert (len(sst2), set(sst2.column("label", "label"))) == (67349, {"0", "1"})
