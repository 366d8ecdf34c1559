"""Instruction data: which format a table has, and its rows as texts, prompts with completions, or messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tailora.data.table import Table
from tailora.errors import DataError

Message = dict[str, Any]

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""ShareGPT's names of the speakers -> roles of chat templates."""

_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Format:
    """A format with the columns it reads.

    Attributes:
        name: ``text``, ``prompt-completion``, ``messages``, ``alpaca`` or ``sharegpt``.
        columns: Its columns, in the order of the format.
    """

    name: str
    columns: tuple[str | int, ...]


def find_format(table: Table, name: str, text: str | int, text_pair: str | int | None) -> Format:
    """Tell how the rows of a table are to be read.

    Args:
        table: The training rows.
        name: A format, or ``auto``.
        text: ``task.text``; anything but ``text`` names the column of the text, the prompt or the conversation.
        text_pair: ``task.text_pair``: the column of the completion.

    Returns:
        The format and its columns.

    Raises:
        DataError: ``auto`` finds no format's columns.
    """
    named = text if str(text) != "text" else None
    if name == "auto":
        name = _detect(table, named, text_pair)
    if name == "prompt-completion":
        prompt = text if text_pair is not None else "prompt" if named is None else named
        return Format(name, (prompt, "completion" if text_pair is None else text_pair))
    if name == "alpaca":
        optional = ("input",) if "input" in table.columns else ()
        return Format(name, ("instruction", "output", *optional))
    default = {"text": "text", "messages": "messages", "sharegpt": "conversations"}[name]
    return Format(name, (default if named is None else named,))


def _detect(table: Table, named: str | int | None, text_pair: str | int | None) -> str:
    if text_pair is not None:
        return "prompt-completion"
    if named is not None:
        values = table.column(named, "task.text")
        return _conversation(values) or "text"
    if "messages" in table.columns:
        return "messages"
    if "conversations" in table.columns:
        return "sharegpt"
    if {"prompt", "completion"} <= table.columns.keys():
        return "prompt-completion"
    if {"instruction", "output"} <= table.columns.keys():
        return "alpaca"
    if "text" in table.columns:
        return "text"
    known = ", ".join(table.columns)
    raise DataError(
        f"{table.source!r} has no column 'text' and no known instruction format; columns: {known} (set task.text, with "
        "task.text_pair for a completion, or task.format)"
    )


def _conversation(values: Sequence[Any]) -> str | None:
    first = next((value for value in values if value), None)
    if not isinstance(first, list) or not all(isinstance(turn, dict) for turn in first):
        return None
    return "sharegpt" if "from" in first[0] else "messages"


def normalise(table: Table, form: Format, options: str = "") -> Table:
    """Return a table with the columns ``text``, ``prompt`` and ``completion``, or ``messages``.

    A prompt and a completion that are lists of messages become one conversation; the column ``learned_from`` then
    says with which of its messages, from 0, the completion begins.

    Args:
        table: Rows in any format.
        form: Their format.
        options: What else changes the examples; it enters the fingerprint.

    Returns:
        The same rows in one of three shapes; values are checked.

    Raises:
        DataError: A column is missing, or a value is not what the format says.
    """
    columns: dict[str, list[Any]]
    if form.name == "text":
        columns = {"text": table.texts(form.columns[0], "task.text")}
    elif form.name == "prompt-completion" and _conversational(table, form):
        columns = _joined(table, form)
    elif form.name == "prompt-completion":
        prompts = table.texts(form.columns[0], "task.text")
        columns = {"prompt": prompts, "completion": table.texts(form.columns[1], "task.text_pair")}
    elif form.name == "alpaca":
        columns = _alpaca(table, form)
    else:
        read = _from_sharegpt if form.name == "sharegpt" else _from_message
        columns = {"messages": _conversations(table, form, read)}
    return Table(columns, table.source, f"{form.name} {options}".strip(), table.numbers)


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """Return the standard Alpaca prompt, up to where the response starts.

    Args:
        instruction: What is to be done.
        context: The ``input`` field; without one the shorter form is used.

    Returns:
        The prompt.
    """
    layout = _ALPACA_WITH_INPUT if context.strip() else _ALPACA_WITHOUT_INPUT
    return layout.format(instruction=instruction, input=context)


def _alpaca(table: Table, form: Format) -> dict[str, list[Any]]:
    instructions = table.texts("instruction", "task.format")
    outputs = table.texts("output", "task.format")
    contexts: list[str] = [""] * len(table)
    if "input" in form.columns:
        # An absent input is written as an empty text or as null.
        values = ["" if value is None else value for value in table.column("input", "task.format")]
        contexts = Table({"input": values}, table.source, "", table.numbers).texts("input", "task.format")
    prompts = [alpaca_prompt(*pair) for pair in zip(instructions, contexts, strict=True)]
    return {"prompt": prompts, "completion": outputs}


def _conversational(table: Table, form: Format) -> bool:
    """Tell whether prompts or completions are lists of messages, as trl writes them; one row decides for all."""
    keys = ("task.text", "task.text_pair")
    columns = [table.column(name, key) for name, key in zip(form.columns, keys, strict=True)]
    kinds = [isinstance(next((value for value in values if value), ""), list) for values in columns]
    if kinds[0] != kinds[1]:
        odd, other = form.columns if kinds[0] else form.columns[::-1]
        raise DataError(
            f"{table.source!r}, column {str(odd)!r} holds lists of messages and column {str(other)!r} holds texts; "
            "give both as lists or both as texts"
        )
    return kinds[0]


def _joined(table: Table, form: Format) -> dict[str, list[Any]]:
    prompts, completions = (
        _conversations(table, Format(form.name, (column,)), _from_message) for column in form.columns
    )
    for row, messages in enumerate(completions):
        if all(message["role"] != "assistant" for message in messages):
            raise DataError(
                f"{table.source!r}, column {str(form.columns[1])!r}, row {table.number(row)} has no message of the "
                "role 'assistant', so there is nothing to learn; correct or remove the row"
            )
    together = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return {"messages": together, "learned_from": [len(prompt) for prompt in prompts]}


def _conversations(table: Table, form: Format, read: Any) -> list[list[Message]]:
    values = table.column(form.columns[0], "task.text")
    result = []
    for row, turns in enumerate(values):
        place = f"{table.source!r}, column {str(form.columns[0])!r}, row {table.number(row)}"
        if not isinstance(turns, list) or not turns:
            raise DataError(f"{place} holds no list of messages; correct it, or choose another task.format")
        result.append([read(turn, f"{place}, message {number}") for number, turn in enumerate(turns, 1)])
    return result


def _from_message(turn: Any, place: str) -> Message:
    for key in ("role", "content"):
        if not isinstance(turn, dict) or not isinstance(turn.get(key), str):
            raise DataError(f"{place} has no text under {key!r}; a message is written {{'role': ..., 'content': ...}}")
    # Parquet and arrow give every message every key: an unused one is null, which templates would take for a value.
    return {key: value for key, value in turn.items() if value is not None}


def _from_sharegpt(turn: Any, place: str) -> Message:
    if isinstance(turn, dict) and "from" not in turn and "role" in turn:
        return _from_message(turn, place)
    for key in ("from", "value"):
        if not isinstance(turn, dict) or not isinstance(turn.get(key), str):
            raise DataError(f"{place} has no text under {key!r}; a turn is written {{'from': ..., 'value': ...}}")
    role = SHAREGPT_ROLES.get(turn["from"].strip().lower())
    if role is None:
        known = ", ".join(SHAREGPT_ROLES)
        raise DataError(f"{place} is from {turn['from']!r}, which is no known speaker; rename it to one of {known}")
    return {"role": role, "content": turn["value"]}
