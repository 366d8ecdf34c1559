"""Instruction formats: what is detected, what the rows become, and the sentence for what does not fit."""

from __future__ import annotations

import pytest

from tailora.data import Table
from tailora.data.formats import SHAREGPT_ROLES, alpaca_prompt, find_format, normalise
from tailora.errors import DataError

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]


def table(**columns):
    return Table(columns, "d.jsonl")


@pytest.mark.parametrize(
    ("columns", "settings", "name", "read"),
    [
        ({"text": ["a"]}, {}, "text", ("text",)),
        ({"body": ["a"], "text": ["b"]}, {"text": "body"}, "text", ("body",)),
        ({"prompt": ["a"], "completion": ["b"]}, {}, "prompt-completion", ("prompt", "completion")),
        ({"q": ["a"], "a": ["b"]}, {"text": "q", "text_pair": "a"}, "prompt-completion", ("q", "a")),
        ({"text": ["a"], "answer": ["b"]}, {"text_pair": "answer"}, "prompt-completion", ("text", "answer")),
        ({"instruction": ["a"], "output": ["b"]}, {}, "alpaca", ("instruction", "output")),
        # Alpaca itself carries a text column that spells the other three out.
        (
            {"instruction": ["a"], "input": [""], "output": ["b"], "text": ["c"]},
            {},
            "alpaca",
            ("instruction", "output", "input"),
        ),
        ({"messages": [TURNS], "text": ["c"]}, {}, "messages", ("messages",)),
        ({"conversations": [SHARED]}, {}, "sharegpt", ("conversations",)),
        ({"dialog": [TURNS]}, {"text": "dialog"}, "messages", ("dialog",)),
        ({"dialog": [SHARED]}, {"text": "dialog"}, "sharegpt", ("dialog",)),
        ({"text": ["a"], "prompt": ["b"], "completion": ["c"]}, {"name": "text"}, "text", ("text",)),
        ({"q": ["b"], "completion": ["c"]}, {"name": "prompt-completion", "text": "q"}, None, ("q", "completion")),
    ],
)
def test_detection(columns, settings, name, read):
    settings = {"name": "auto", "text": "text", "text_pair": None, **settings}
    found = find_format(table(**columns), **settings)
    assert found.name == (name or settings["name"])
    assert found.columns == read


def shaped(name="auto", text="text", text_pair=None, **columns):
    rows = table(**columns)
    return normalise(rows, find_format(rows, name, text, text_pair)).columns


def test_alpaca_layout():
    assert alpaca_prompt("Add.", "1 2").splitlines()[2:] == [
        "### Instruction:",
        "Add.",
        "",
        "### Input:",
        "1 2",
        "",
        "### Response:",
    ]
    assert alpaca_prompt("Add {x}.").endswith("### Instruction:\nAdd {x}.\n\n### Response:\n")
    rows = shaped(instruction=["I", "I", "I"], input=["in", "", None], output=["A", "B", "C"])
    assert rows["completion"] == ["A", "B", "C"]
    assert rows["prompt"] == [alpaca_prompt("I", "in"), alpaca_prompt("I"), alpaca_prompt("I")]


def test_sharegpt_becomes_messages():
    system = {"from": "system", "value": "be kind"}
    assert shaped(conversations=[[system, *SHARED]]) == {
        "messages": [[{"role": "system", "content": "be kind"}, *TURNS]]
    }
    assert shaped(conversations=[TURNS]) == {"messages": [TURNS]}
    assert set(SHAREGPT_ROLES.values()) == {"user", "assistant", "system", "tool"}


def test_prompts_and_completions_of_messages_become_conversations():
    prompt = [*TURNS, {"role": "user", "content": "bye"}]
    assert shaped(prompt=[prompt, TURNS[:1]], completion=[TURNS[1:], TURNS[1:]]) == {
        "messages": [prompt + TURNS[1:], TURNS],
        "learned_from": [3, 1],
    }
    assert shaped(text="q", text_pair="a", q=[TURNS[:1]], a=[TURNS[1:]])["learned_from"] == [1]


def test_unused_keys_of_parquet_messages_vanish():
    turn = {"role": "user", "content": "hi", "tool_calls": None}
    assert shaped(messages=[[turn]]) == {"messages": [[{"role": "user", "content": "hi"}]]}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"question": ["a"], "answer": ["b"]},
            "'d.jsonl' has no column 'text' and no known instruction format; columns: question, answer (set task.text, "
            "with task.text_pair for a completion, or task.format)",
        ),
        (
            {"name": "alpaca", "instruction": ["a"], "outputs": ["b"]},
            "'d.jsonl' has no column 'output'; did you mean 'outputs'? columns: instruction, outputs (set task.format)",
        ),
        (
            {"instruction": ["a", None], "output": ["b", "c"]},
            "'d.jsonl', column 'instruction', row 2 holds null and no text; choose another column with task.format",
        ),
        (
            {"prompt": [TURNS], "completion": ["a"]},
            "'d.jsonl', column 'prompt' holds lists of messages and column 'completion' holds texts; give both as "
            "lists or both as texts",
        ),
        (
            {"prompt": ["a"], "completion": [TURNS]},
            "'d.jsonl', column 'completion' holds lists of messages and column 'prompt' holds texts; give both as "
            "lists or both as texts",
        ),
        (
            {"prompt": [TURNS[:1], "a"], "completion": [TURNS[1:], TURNS[1:]]},
            "'d.jsonl', column 'prompt', row 2 holds no list of messages; correct it, or choose another task.format",
        ),
        (
            {"prompt": [TURNS], "completion": [TURNS[:1]]},
            "'d.jsonl', column 'completion', row 1 has no message of the role 'assistant', so there is nothing to "
            "learn; correct or remove the row",
        ),
        (
            {"messages": [TURNS, []]},
            "'d.jsonl', column 'messages', row 2 holds no list of messages; correct it, or choose another task.format",
        ),
        (
            {"messages": [[TURNS[0], {"role": "assistant"}]]},
            "'d.jsonl', column 'messages', row 1, message 2 has no text under 'content'; a message is written "
            "{'role': ..., 'content': ...}",
        ),
        (
            {"conversations": [[{"from": "human", "value": None}]]},
            "'d.jsonl', column 'conversations', row 1, message 1 has no text under 'value'; a turn is written "
            "{'from': ..., 'value': ...}",
        ),
        (
            {"conversations": [[{"from": "narrator", "value": "a"}]]},
            "'d.jsonl', column 'conversations', row 1, message 1 is from 'narrator', which is no known speaker; rename "
            "it to one of human, user, gpt, chatgpt, assistant, model, system, tool, observation",
        ),
    ],
)
def test_what_does_not_fit(arguments, sentence):
    with pytest.raises(DataError) as caught:
        shaped(**arguments)
    assert str(caught.value) == sentence


def test_what_changes_the_examples_changes_the_fingerprint():
    rows = table(instruction=["a"], output=["b"], text=["c"])
    prints = {
        normalise(rows, find_format(rows, name, "text", None), options).fingerprint
        for name in ("alpaca", "text")
        for options in ("", "packing=True")
    }
    assert len(prints) == 4
