"""Conversations to tokens, with the assistant's turns marked."""

from __future__ import annotations

import re
from typing import Any

from tailora.data.formats import Message
from tailora.errors import DataError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Marked = tuple[list[int], list[bool]]
"""Token ids, and for each whether the assistant wrote it."""


def plain_turns(messages: list[Message]) -> list[tuple[str, bool]]:
    r"""Write a conversation for a tokenizer without a chat template.

    Every turn is ``### Role:``, a line break and the content; an empty line stands between turns.

    Args:
        messages: Dicts with ``role`` and ``content``.

    Returns:
        Pieces of text in order, each with whether the assistant wrote it; an end token belongs after each such piece.
    """
    pieces: list[tuple[str, bool]] = []
    before = ""
    for message in messages:
        before += f"### {message['role'].capitalize()}:\n"
        if message["role"] == "assistant":
            pieces += [(before, False), (message["content"], True)]
            before = "\n\n"
        else:
            before += f"{message['content']}\n\n"
    return [*pieces, (before, False)] if before.strip() else pieces


def templated(
    tokenizer: Any,
    conversations: list[list[Message]],
    places: list[str],
    *,
    mark: bool,
    learned_from: list[int] | None = None,
) -> list[Marked]:
    """Write and tokenise conversations with the tokenizer's chat template.

    A template with ``{% generation %}`` says itself what the assistant writes.  For another one each turn is found
    by tokenising the conversation up to its start (with the generation prompt) and up to its end.

    Args:
        tokenizer: Has a chat template.
        conversations: Lists of messages.
        places: Where each one stands, for messages.
        mark: Whether the assistant's tokens are asked for; all are marked otherwise.
        learned_from: The number from 0 of the first message of each conversation whose tokens may be marked; 0 when
            left out.

    Returns:
        Token ids and marks of each conversation.

    Raises:
        DataError: The template refuses a conversation, or writes earlier turns anew when the conversation goes on.
    """
    # Some tokenizers have several templates by name; "default" is the one that is applied.
    template = tokenizer.chat_template
    template = template.get("default", "") if isinstance(template, dict) else template
    starts = learned_from or [0] * len(conversations)
    if mark and tokenizer.is_fast and _GENERATION.search(template):
        return [_by_tags(tokenizer, *row) for row in zip(conversations, places, starts, strict=True)]
    wholes = [_render(tokenizer, *pair) for pair in zip(conversations, places, strict=True)]
    ids = _tokens(tokenizer, wholes)
    if not mark:
        return [(tokens, [True] * len(tokens)) for tokens in ids]
    return [
        (tokens, _by_prefixes(tokenizer, messages, whole, tokens, place, start))
        for messages, whole, tokens, place, start in zip(conversations, wholes, ids, places, starts, strict=True)
    ]


def _by_tags(tokenizer: Any, messages: list[Message], place: str, start: int) -> Marked:
    arguments = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    encoded = _apply(tokenizer, messages, place, **arguments)
    ids, marks = list(encoded["input_ids"]), [bool(mark) for mark in encoded["assistant_masks"]]
    if start:
        before, whole = (_render(tokenizer, part, place) for part in (messages[:start], messages))
        if not whole.startswith(before):
            raise _rewritten(place, start, "write prompt and completion as one conversation in 'messages'")
        (tokens,) = _tokens(tokenizer, [before])
        silent = _common(tokens, ids)
        marks[:silent] = [False] * silent
    return ids, marks


def _rewritten(place: str, number: int, way_out: str) -> DataError:
    return DataError(
        f"{place}: the tokenizer's chat template writes message {number} differently depending on what surrounds it, "
        f"so its tokens cannot be told apart; set task.completion_only=false, or {way_out}"
    )


def _by_prefixes(
    tokenizer: Any, messages: list[Message], whole: str, ids: list[int], place: str, start: int
) -> list[bool]:
    marks = [False] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or number < start:
            continue
        # Most templates refuse an empty conversation: an opening turn of the assistant counts with its header.
        before = _render(tokenizer, messages[:number], place, add_generation_prompt=True) if number else ""
        upto = _render(tokenizer, messages[: number + 1], place)
        if not (whole.startswith(before) and upto.startswith(before) and _holds(message, before, upto, whole)):
            raise _rewritten(place, number + 1, "give the tokenizer a template with {% generation %}")
        first, stop = (_common(tokens, ids) for tokens in _tokens(tokenizer, [before, upto]))
        # What a template writes after the end token (a line break, say) is nothing that the model has to learn.
        ends = [at for at in range(first, stop) if ids[at] == tokenizer.eos_token_id]
        stop = ends[-1] + 1 if ends else stop
        marks[first:stop] = [True] * (stop - first)
    return marks


def _holds(message: Message, before: str, upto: str, whole: str) -> bool:
    """Tell whether the message stands right after ``before`` in both texts.

    Not more is asked: some templates close the last turn of a conversation differently from the others.
    """
    content = message["content"].strip()
    end = whole.find(content, len(before)) + len(content)
    return content in whole[len(before) :] and whole[:end] == upto[:end]


def _render(tokenizer: Any, messages: list[Message], place: str, **arguments: Any) -> str:
    return _apply(tokenizer, messages, place, tokenize=False, **arguments)


def _apply(tokenizer: Any, messages: list[Message], place: str, **arguments: Any) -> Any:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, **arguments)
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{place}: the tokenizer's chat template refuses the conversation ({reason}); correct or remove the row"
        ) from None


def _tokens(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    # The template writes the special tokens itself.
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def _common(prefix: list[int], ids: list[int]) -> int:
    """Count the tokens that both start with: at a boundary two pieces of text may be one token."""
    count = 0
    for mine, theirs in zip(prefix, ids, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
