"""The cache of tokenised data: same result, another key for whatever matters, and broken files are made again."""

from __future__ import annotations

import threading

import datasets
import pytest
import transformers as tf

from tailora.data import Encoded, EncodingReport, Table
from tailora.data import cache as caching
from tailora.data.cache import cached_encoding
from tailora.data.encoding import encode_table
from tiny_runs import tokenizer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(caching, "CACHED_ROWS", 2)
    return tmp_path / "tailora-tokenised"


def rows(*words, source="d.jsonl"):
    words = words or ("w1", "w2", "w3")
    return Table({"prompt": list(words), "completion": ["w4"] * len(words)}, source, "prompt-completion")


def through(table, tokens=None, calls=None, **settings):
    tokens = tokens or tokenizer()
    settings = {"limit": 8, "completion_only": True, "packing": False, **settings}

    def make():
        if calls is not None:
            calls.append(1)
        return encode_table(table, tokens, **settings)

    return cached_encoding(table, tokens, settings, make)


def test_second_time_comes_from_disk(folder):
    calls = []
    first, second = (through(rows(source=name), calls=calls) for name in ("a.jsonl", "b.csv"))
    assert list(first) == list(second)
    assert len(calls) == 1
    assert second.report == EncodingReport("b.csv", "prompt-completion", 3, limit=8, tokens=9, counted=6)
    assert [path.suffix for path in folder.iterdir()] == [".npz"]


def test_everything_that_matters_is_in_the_key(folder):
    calls = []
    chat = tokenizer()
    chat.chat_template = "{{ messages }}"
    more = tokenizer()
    more.add_tokens(["new"])
    through(rows(), calls=calls)
    through(rows("w1", "w2", "w5"), calls=calls)
    through(rows(), calls=calls, limit=7)
    through(rows(), calls=calls, packing=True)
    through(rows(), calls=calls, completion_only=False)
    through(rows(), chat, calls)
    through(rows(), more, calls)
    assert len(calls) == len(list(folder.iterdir())) == 7


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not a zip"])
def test_broken_file_is_made_again(folder, content):
    good = through(rows())
    path = next(folder.iterdir())
    path.write_bytes(content)
    calls = []
    assert list(through(rows(), calls=calls)) == list(good)
    assert list(through(rows(), calls=calls)) == list(good)
    assert len(calls) == 1


def test_small_tables_and_python_tokenizers_are_not_kept(folder):
    through(rows("w1"))
    slow = tokenizer()
    cached = cached_encoding(rows(), _Slow(slow), {}, lambda: Encoded([], EncodingReport("d", "text", 0)))
    assert not cached
    assert not folder.exists()


class _Slow:
    is_fast = False

    def __init__(self, inner: tf.PreTrainedTokenizerBase) -> None:
        self.inner = inner


def test_no_room_on_disk_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    monkeypatch.setattr(caching, "CACHED_ROWS", 2)
    assert len(through(rows())) == 3


def test_many_at_once(folder):
    results = []
    threads = [threading.Thread(target=lambda: results.append(through(rows()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(list(result) == list(results[0]) for result in results)
    assert [path.suffix for path in folder.iterdir()] == [".npz"]


def test_killed_while_writing_leaves_no_file_that_is_read(folder, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(caching.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        through(rows())
    monkeypatch.undo()
    assert not list(folder.glob("*"))
