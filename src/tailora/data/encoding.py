"""Rows to tokens and labels, with a count of what was cut and left out."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tailora.data.chat import Marked, plain_turns, templated
from tailora.data.packing import IGNORED, pack
from tailora.data.table import Table
from tailora.errors import DataError

_LOG = logging.getLogger("tailora.data")

Pieces = list[tuple[str, bool]]
"""Pieces of text, each with whether its tokens count in the loss."""


@dataclass(frozen=True)
class EncodingReport:
    """What became of the rows of a table.

    Attributes:
        source: Path or hub id.
        format: How the rows were read.
        rows: Rows of the table.
        limit: Longest sequence, in tokens; 0 where nothing was cut.
        cut: Rows that were shortened and still have something to predict.
        dropped: Rows left out because nothing to predict was left of them.
        blocks: Blocks that a text or packed rows were cut into; 0 where every row is an example.
        blocks_dropped: Blocks left out because they hold prompts alone.
        tokens: Tokens of all examples.
        counted: Tokens that count in the loss.
    """

    source: str
    format: str
    rows: int
    limit: int = 0
    cut: int = 0
    dropped: int = 0
    blocks: int = 0
    blocks_dropped: int = 0
    tokens: int = 0
    counted: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)

    def notice(self, part: str) -> str:
        """Return what a user should know about, or an empty text.

        Args:
            part: What the rows are, such as ``"training"``.

        Returns:
            One sentence without the source.
        """
        parts = []
        if self.cut:
            parts.append(f"{self.cut} of {self.rows} {part} examples were cut to {self.limit} tokens")
        if self.dropped:
            where = "" if self.blocks else f" within {self.limit} tokens"
            parts.append(f"{self.dropped} of {self.rows} {part} examples were left out, with nothing to predict{where}")
        if self.blocks_dropped:
            of = self.blocks + self.blocks_dropped
            parts.append(f"{self.blocks_dropped} of {of} packed {part} blocks were left out, being prompts alone")
        return ", and ".join(parts) + "; task.max_length sets the length" if parts else ""


class Reported(list[dict[str, Any]]):
    """Tokenised examples with the report of how they were made.

    Attributes:
        report: What became of the rows.
    """

    def __init__(self, examples: Iterable[dict[str, Any]], report: EncodingReport) -> None:
        super().__init__(examples)
        self.report = report


class Encoded(Reported):
    """Reported examples of a language model, whose tokens are counted."""

    def __init__(self, examples: Iterable[dict[str, Any]], report: EncodingReport) -> None:
        super().__init__(examples, report)
        tokens = sum(len(example["input_ids"]) for example in self)
        # The first position is never predicted, so its label never counts.
        counted = sum(label != IGNORED for example in self for label in example["labels"][1:])
        self.report = replace(report, tokens=tokens, counted=counted)

    def take(self, rows: Sequence[int]) -> Encoded:
        """Return the given examples with the same report, their tokens counted again."""
        return Encoded([self[row] for row in rows], self.report)


def with_cuts(
    examples: list[dict[str, Any]], table: Table, limit: int, whole: Callable[[list[int]], list[list[int]]]
) -> Reported:
    """Return examples that a tokenizer cut to a length, with the number of those it did cut.

    Args:
        examples: One per row, with ``input_ids``.
        table: The rows.
        limit: The length.
        whole: From row numbers to the uncut ``input_ids`` of those rows.

    Returns:
        The examples.
    """
    full = [row for row, example in enumerate(examples) if len(example["input_ids"]) >= limit]
    cut = sum(len(ids) > limit for ids in whole(full)) if full else 0
    tokens = sum(len(example["input_ids"]) for example in examples)
    return Reported(examples, EncodingReport(table.source, "text", len(table), limit, cut, tokens=tokens))


def tell_cuts(training: Reported, evaluation: Reported) -> None:
    """Warn of examples that were cut or left out.

    Args:
        training: The training examples.
        evaluation: The evaluation examples.
    """
    for part, encoded in (("training", training), ("evaluation", evaluation)):
        if notice := encoded.report.notice(part):
            _LOG.warning("%s: %s", encoded.report.source, notice)


@contextlib.contextmanager
def long_texts(tokenizer: Any) -> Iterator[None]:
    """Keep a tokenizer from warning of texts that are longer than the model: they are cut afterwards."""
    limit, tokenizer.model_max_length = tokenizer.model_max_length, int(1e30)
    try:
        yield
    finally:
        tokenizer.model_max_length = limit


def encode_table(
    table: Table, tokenizer: Any, limit: int, *, completion_only: bool = True, packing: bool = False
) -> Encoded:
    """Tokenise the rows of a table in one of the shapes of ``formats.normalise``.

    Args:
        table: Columns ``text``, ``prompt`` and ``completion``, or ``messages`` and perhaps ``learned_from``.
        tokenizer: The model's tokenizer.
        limit: Longest example; the length of the blocks when packing.
        completion_only: Whether only completions and the assistant's turns count; else every token does.
        packing: Concatenate the examples (see ``packing.pack``) rather than cut each one.

    Returns:
        The examples, ``input_ids`` and ``labels``.

    Raises:
        DataError: No token to predict is left, or a conversation cannot be written.
    """
    examples, cut, dropped = encode_rows(table, tokenizer, None if packing else limit, completion_only)
    report = EncodingReport(table.source, table.form.partition(" ")[0], len(table), limit, cut, dropped)
    if packing:
        packed = pack(examples, limit, tokenizer.eos_token_id)
        examples = [block for block in packed if counts(block)]
        report = replace(report, blocks=len(examples), blocks_dropped=len(packed) - len(examples))
    if not examples:
        raise DataError(f"{table.source!r} leaves no token to predict within {limit} tokens; raise task.max_length")
    return Encoded(examples, report)


def encode_rows(
    table: Table, tokenizer: Any, limit: int | None, completion_only: bool
) -> tuple[list[dict[str, Any]], int, int]:
    """Tokenise rows and leave out those that have nothing to predict; see ``encode_table``.

    Args:
        table: As for ``encode_table``.
        tokenizer: As for ``encode_table``.
        limit: Longest example; ``None`` cuts nothing.
        completion_only: As for ``encode_table``.

    Returns:
        The examples, how many of them were cut, and how many rows were left out.

    Raises:
        DataError: A conversation cannot be written.
    """
    with long_texts(tokenizer):
        marked = _marked(table, tokenizer, completion_only)
    examples, cut, dropped = [], 0, 0
    for ids, marks in marked:
        labels = [token if mark or not completion_only else IGNORED for token, mark in zip(ids, marks, strict=True)]
        example = {"input_ids": ids[:limit], "labels": labels[:limit]}
        if not counts(example):
            dropped += 1
            continue
        cut += len(ids) > len(example["input_ids"])
        examples.append(example)
    return examples, cut, dropped


def counts(example: dict[str, list[int]]) -> bool:
    """Tell whether a token is left to predict; the first one never is."""
    return any(label != IGNORED for label in example["labels"][1:])


def _marked(table: Table, tokenizer: Any, completion_only: bool) -> list[Marked]:
    columns = table.columns
    if "messages" in columns:
        conversations = columns["messages"]
        starts = columns.get("learned_from", [0] * len(table))
        if tokenizer.chat_template is not None:
            places = [f"{table.source!r}, row {table.number(row)}" for row in range(len(table))]
            return templated(tokenizer, conversations, places, mark=completion_only, learned_from=starts)
        rows = zip(conversations, starts, strict=True)
        silent = [sum(message["role"] == "assistant" for message in messages[:start]) for messages, start in rows]
        return _tokenise(tokenizer, [plain_turns(messages) for messages in conversations], silent)
    if "completion" in columns:
        pairs = zip(columns["prompt"], columns["completion"], strict=True)
        return _tokenise(tokenizer, [[(prompt, False), (completion, True)] for prompt, completion in pairs])
    return _tokenise(tokenizer, [[(text, True)] for text in columns["text"]])


def _tokenise(tokenizer: Any, rows: list[Pieces], silent: Sequence[int] | None = None) -> list[Marked]:
    """Tokenise piece by piece, as generation will: a prompt is tokenised before its answer is known.

    Special tokens go in front of a row, and an end token after each piece that counts.  ``silent`` says how many of
    these a row's prompt already has: they end so as well, but do not count.
    """
    firsts = tokenizer([pieces[0][0] for pieces in rows])["input_ids"]
    flat = [text for pieces in rows for text, _ in pieces[1:]]
    others = iter(tokenizer(flat, add_special_tokens=False)["input_ids"] if flat else [])
    end = tokenizer.eos_token_id
    result = []
    for pieces, first, left in zip(rows, firsts, silent or [0] * len(rows), strict=True):
        ids: list[int] = []
        marks: list[bool] = []
        for number, (_, learned) in enumerate(pieces):
            # Some tokenizers close every text with an end token, which here would split a prompt from its answer.
            tokens = next(others) if number else first[:-1] if len(first) > 1 and first[-1] == end else first
            tokens = [*tokens, end] if learned and end is not None else list(tokens)
            ids += tokens
            marks += [learned and left <= 0] * len(tokens)
            left -= learned
        result.append((ids, marks))
    return result
