"""Files that are whole or absent, several at a time."""

from __future__ import annotations

import errno
import os

import pytest

from tailora.artifacts import write_together
from tailora.errors import UserError
from tailora.failures import explain


def test_all_or_none(tmp_path, monkeypatch):
    folder = tmp_path / "new" / "folder"
    write_together(folder, {"a": b"1", "b": b"2", "c": None})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"1", "b": b"2"}
    plain, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_together(folder, {"a": b"3", "b": b"4"})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"1", "b": b"2"}
    assert str(folder) in str(explain(caught.value))


def test_a_file_goes(tmp_path):
    write_together(tmp_path, {"a": b"1"})
    write_together(tmp_path, {"a": None, "b": b"2"})
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        write_together(tmp_path, {"c": b"1"})
