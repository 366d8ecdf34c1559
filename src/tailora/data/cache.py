"""Tokenised data on disk, by the hash of what it was made from, so that the runs of a study tokenise once."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tailora.artifacts import content_hash
from tailora.data.encoding import Encoded, EncodingReport
from tailora.data.packing import IGNORED
from tailora.data.table import Table

CACHED_ROWS = 2000
"""Tables with fewer rows are tokenised faster than a disk is worth asking."""

_VERSION = 1


def cache_folder() -> Path:
    """Return where tokenised data is kept: a folder in the cache of ``datasets`` (``HF_DATASETS_CACHE``)."""
    from datasets import config

    return Path(str(config.HF_DATASETS_CACHE)) / "tailora-tokenised"


def cached_encoding(table: Table, tokenizer: Any, settings: dict[str, Any], make: Callable[[], Encoded]) -> Encoded:
    """Return tokenised rows from the cache, or make and keep them.

    The key holds the rows, the whole tokenizer with its chat template, and the settings.  A file is written under a
    temporary name and renamed: a killed run leaves no half of one, and two runs at a time write the same thing.

    Args:
        table: The rows; a small table is not kept.
        tokenizer: What tokenises them; only one with a Rust backend says what it consists of.
        settings: Everything else that changes the examples.
        make: Tokenises the rows.

    Returns:
        What ``make`` returns.
    """
    if len(table) < CACHED_ROWS or not tokenizer.is_fast:
        return make()
    identity = [type(tokenizer).__name__, tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template]
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    key = content_hash([_VERSION, table.fingerprint, content_hash([identity, specials]), settings])
    path = cache_folder() / f"{key}.npz"
    # A file that is absent, cut off or of another make is made again.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return _load(path, table.source)
    encoded = make()
    # A full or read-only disk costs time, not the run.
    with contextlib.suppress(OSError):
        _save(path, encoded)
    return encoded


def _save(path: Path, encoded: Encoded) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        temporary = Path(folder) / path.name
        tokens = np.asarray([token for example in encoded for token in example["input_ids"]], dtype=np.int32)
        labels = np.asarray([label for example in encoded for label in example["labels"]], dtype=np.int32)
        np.savez(
            temporary,
            tokens=tokens,
            counts=labels != IGNORED,
            lengths=np.asarray([len(example["input_ids"]) for example in encoded], dtype=np.int64),
            report=np.frombuffer(json.dumps(encoded.report.to_dict()).encode(), dtype=np.uint8),
        )
        os.replace(temporary, path)


def _load(path: Path, source: str) -> Encoded:
    with np.load(path, allow_pickle=False) as arrays:
        tokens, counts, lengths = arrays["tokens"], arrays["counts"], arrays["lengths"]
        report = EncodingReport(**json.loads(arrays["report"].tobytes()))
    labels = np.where(counts, tokens, IGNORED)
    if lengths.sum() != len(tokens) or len(tokens) != len(counts):
        raise ValueError("lengths do not add up")
    ends = lengths.cumsum().tolist()
    starts = [0, *ends[:-1]]
    all_tokens, all_labels = tokens.tolist(), labels.tolist()
    examples = [
        {"input_ids": all_tokens[start:end], "labels": all_labels[start:end]}
        for start, end in zip(starts, ends, strict=True)
    ]
    # The same rows may come from another path than they did then.
    return Encoded(examples, replace(report, source=source))
