"""Chat templates: the assistant's turns are found, and a template that hides them is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers as tf
import trl
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from tailora.data import Table
from tailora.data.chat import plain_turns
from tailora.data.encoding import encode_table
from tailora.errors import DataError

CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' + m.content + ' <|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)


def turns(*contents, system=None):
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return messages + [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]


def encode(rows, tokens, **options):
    return encode_table(Table({"messages": rows}, "d.jsonl", "messages"), tokens, 2000, **options)


def test_plain_layout():
    assert plain_turns(turns("hi", "hello", "bye", system="Be brief.")) == [
        ("### System:\nBe brief.\n\n### User:\nhi\n\n### Assistant:\n", False),
        ("hello", True),
        ("\n\n### User:\nbye\n\n", False),
    ]


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "gemma", "phi3"])
def test_real_templates_agree_with_trls_tagged_ones(name):
    folder = Path(trl.__file__).parent / "chat_templates"
    paths = [folder / f"{name}.jinja", folder / f"{name}_training.jinja"]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"this trl has no chat template {name}")
    # Phi closes a conversation, not a turn, with the tokenizer's own end token.
    ends = {"qwen2_5": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi3": "<|end|>"}
    token = {"phi3": "<|endoftext|>"}.get(name, ends[name])
    found = []
    for path in paths:
        tokens = characters(token, path.read_text(encoding="utf-8"))
        rows = [turns("ab c", "d e", "f", "g a"), turns("a", "bb")]
        found.append([answers(example, tokens) for example in encode(rows, tokens)])
    for spans in found:
        # trl may or may not count the white space around an answer; the words and the end of the turn are the same.
        words = [[text.replace(token, "").replace(ends[name], "").strip() for text in row] for row in spans]
        assert words == [["d e", "g a"], ["bb"]]
    assert all(ends[name] in text for row in found[0] for text in row)


def characters(end, template=None):
    """One token per character, so that a mask shows exactly where it starts and stops."""
    inner = Tokenizer(WordLevel({"<unk>": 0, **{chr(n): n for n in range(1, 127)}}, unk_token="<unk>"))
    inner.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    names = {"unk_token": "<unk>", "pad_token": "<unk>", "bos_token": "<bos>", "eos_token": end}
    made = tf.PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    made.chat_template = template
    return made


def answers(example, tokens):
    """The stretches that count, decoded."""
    spans, open_ = [], False
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        if label != -100:
            spans = [*spans, []] if not open_ else spans
            spans[-1].append(token)
        open_ = label != -100
    return ["".join(tokens.convert_ids_to_tokens(span)) for span in spans]


def test_template_that_rewrites_earlier_turns():
    last_only = CHAT.replace("m.content +", "(m.content if loop.last else 'g') +")
    with pytest.raises(DataError) as caught:
        encode([turns("a", "b", "c", "d")], characters("<|im_end|>", last_only))
    assert str(caught.value) == (
        "'d.jsonl', row 1: the tokenizer's chat template writes message 2 differently depending on what "
        "surrounds it, so its tokens cannot be told apart; set task.completion_only=false, or give the tokenizer a "
        "template with {% generation %}"
    )
    assert encode([turns("a", "b", "c", "d")], characters("<|im_end|>", last_only), completion_only=False)[0]


def test_template_that_refuses():
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('users first') }}{% endif %}" + CHAT
    with pytest.raises(DataError) as caught:
        encode([turns("a", "b"), turns("a", "b", system="c")], characters("<|im_end|>", strict))
    assert str(caught.value) == (
        "'d.jsonl', row 2: the tokenizer's chat template refuses the conversation (users first); "
        "correct or remove the row"
    )
