"""Instruction data as tokens: exact label masks, truncation, packing, chat templates, and runs on real data."""

from __future__ import annotations

import json
import logging

import pytest
import transformers as tf
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tailora.config import TaskConfig, make_config
from tailora.data.formats import alpaca_prompt
from tailora.errors import ConfigError, DataError
from tailora.runs import execute
from tailora.tasks import TASKS
from tailora.tasks.calibration import prepare
from tiny_runs import read_rows

LANGUAGE = TASKS["causal-lm"]
WORDS = "<pad> <unk> <s> </s> <|im_start|> <|im_end|> ### System: User: Assistant: system user assistant a b c d e f g"
IDS = {word: number for number, word in enumerate(WORDS.split())}
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' + m.content + ' <|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)
TAGGED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + ' <|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + ' <|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}"
)


def tokenizer(template=None, eos="</s>"):
    inner = Tokenizer(WordLevel(IDS, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    inner.add_special_tokens([AddedToken(word, special=True) for word in list(IDS)[:6]])
    made = tf.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token=eos
    )
    made.chat_template = template
    return made


def encode(tmp_path, rows, tokens=None, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = TaskConfig(**{"kind": "causal-lm", "train": str(path), "evaluation": str(path), **settings})
    return LANGUAGE.encode(task, LANGUAGE.read(task), tokens or tokenizer())


def shown(example):
    """The tokens of an example, those that do not count in brackets."""
    names = list(IDS)
    pairs = zip(example["input_ids"], example["labels"], strict=True)
    assert all(label in (-100, token) for token, label in zip(example["input_ids"], example["labels"], strict=True))
    return " ".join(names[token] if label != -100 else f"[{names[token]}]" for token, label in pairs)


def turns(*contents, system=None):
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return {"messages": messages + [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]}


def test_text_counts_whole(tmp_path):
    training, evaluation = encode(tmp_path, [{"text": "a b"}])
    assert [shown(example) for example in training] == ["a b </s>"] == [shown(example) for example in evaluation]


def test_prompt_and_completion(tmp_path):
    rows = [{"prompt": "a b", "completion": "c"}, {"prompt": "d", "completion": ""}]
    assert [shown(example) for example in encode(tmp_path, rows)[0]] == ["[a] [b] c </s>", "[d] </s>"]
    whole = encode(tmp_path, rows, completion_only=False)[0]
    assert [shown(example) for example in whole] == ["a b c </s>", "d </s>"]


def test_plain_chat_layout(tmp_path):
    rows = [turns("a", "b c", "d", "e", system="f"), turns("a", "b", "c")]
    training, _ = encode(tmp_path, rows)
    assert [shown(example) for example in training] == [
        "[###] [System:] [f] [###] [User:] [a] [###] [Assistant:] b c </s> [###] [User:] [d] [###] [Assistant:] e </s>",
        "[###] [User:] [a] [###] [Assistant:] b </s> [###] [User:] [c]",
    ]
    assert "[" not in shown(encode(tmp_path, rows, completion_only=False)[0][1])


def test_chat_template_with_and_without_generation_tags(tmp_path):
    rows = [turns("a", "b c", "d", "e", system="f")]
    header = "[<|im_start|>] [system] [f] [<|im_end|>] [<|im_start|>] [user] [a] [<|im_end|>] "
    want = (
        header + "[<|im_start|>] [assistant] b c <|im_end|> [<|im_start|>] [user] [d] [<|im_end|>] "
        "[<|im_start|>] [assistant] e <|im_end|>"
    )
    for template in (CHAT, TAGGED):
        training, _ = encode(tmp_path, rows, tokenizer(template, eos="<|im_end|>"))
        assert [shown(example) for example in training] == [want]
    free, _ = encode(tmp_path, rows, tokenizer(CHAT, eos="<|im_end|>"), completion_only=False)
    assert shown(free[0]) == want.replace("[", "").replace("]", "")


def test_prompt_and_completion_as_messages_count_only_the_completion(tmp_path):
    messages = turns("a", "b c", "d", "e", system="f")["messages"]
    row = {"prompt": messages[:4], "completion": messages[4:]}
    for template, eos in ((None, "</s>"), (CHAT, "<|im_end|>"), (TAGGED, "<|im_end|>")):
        tokens = tokenizer(template, eos=eos)
        (whole,), _ = encode(tmp_path, [{"messages": messages}], tokens)
        (example,), _ = encode(tmp_path, [row], tokens)
        assert example["input_ids"] == whole["input_ids"]
        assert [word for word in shown(example).split() if word[0] != "["] == ["e", eos]
        assert "b c" in shown(whole)
        (free,), _ = encode(tmp_path, [row], tokens, completion_only=False)
        assert free["labels"] == free["input_ids"] == whole["input_ids"]


def test_a_template_that_rewrites_the_prompt_is_refused(tmp_path):
    # The first turn is written only where it is the last one, as reasoning is by some templates.
    forgetful = TAGGED.replace("{% for m in messages %}", "{% for m in messages[-2:] %}")
    messages = turns("a", "b", "c", "d")["messages"]
    with pytest.raises(DataError, match="writes message 3 differently.*'messages'"):
        encode(tmp_path, [{"prompt": messages[:3], "completion": messages[3:]}], tokenizer(forgetful, eos="<|im_end|>"))


def test_sharegpt_and_alpaca_reach_the_same_code(tmp_path):
    shared = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    one, _ = encode(tmp_path, [shared], tokenizer(CHAT, eos="<|im_end|>"))
    two, _ = encode(tmp_path, [turns("a", "b")], tokenizer(CHAT, eos="<|im_end|>"))
    assert list(one) == list(two)
    assert one.report.format == "sharegpt"
    example = encode(tmp_path, [{"instruction": "a", "input": "b", "output": "c d"}])[0][0]
    assert shown(example).endswith("[###] [<unk>] [b] [###] [<unk>] c d </s>")


def test_an_opening_turn_of_the_assistant(tmp_path):
    row = {"messages": [{"role": "assistant", "content": "a"}, *turns("b", "c")["messages"]]}
    assert shown(encode(tmp_path, [row])[0][0]) == (
        "[###] [Assistant:] a </s> [###] [User:] [b] [###] [Assistant:] c </s>"
    )


def test_cut_and_dropped_are_counted_and_told(tmp_path, caplog):
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "b c d e"},
        {"prompt": "a b c d", "completion": "e"},
    ]
    with caplog.at_level(logging.WARNING, "tailora.data"):
        training, _ = encode(tmp_path, rows, max_length=4)
    assert [shown(example) for example in training] == ["[a] b </s>", "[a] b c d"]
    report = training.report.to_dict()
    assert {key: report[key] for key in ("rows", "limit", "cut", "dropped", "tokens", "counted")} == {
        "rows": 3,
        "limit": 4,
        "cut": 1,
        "dropped": 1,
        "tokens": 7,
        "counted": 5,
    }
    assert caplog.messages[0] == (
        f"{tmp_path}/rows.jsonl: 1 of 3 training examples were cut to 4 tokens, and 1 of 3 training examples were left "
        "out, with nothing to predict within 4 tokens; task.max_length sets the length"
    )


def test_nothing_left(tmp_path):
    with pytest.raises(DataError) as caught:
        encode(tmp_path, [{"prompt": "a b c", "completion": "d"}], max_length=3)
    assert str(caught.value) == (
        f"'{tmp_path}/rows.jsonl' leaves no token to predict within 3 tokens; raise task.max_length"
    )


def test_silent_when_nothing_is_lost(tmp_path, caplog):
    encode(tmp_path, [{"text": "a b"}])
    assert not caplog.messages


def test_packing_trains_on_blocks_and_evaluates_on_rows(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c d", "completion": "e f"}]
    training, evaluation = encode(tmp_path, rows, max_length=4, packing=True)
    assert [shown(block) for block in training] == ["[a] b </s> [c]", "[d] e f </s>"]
    assert [shown(example) for example in evaluation] == ["[a] b </s>", "[c] [d] e f"]
    report = training.report
    assert (report.rows, report.cut, report.dropped, report.blocks, report.blocks_dropped) == (2, 0, 0, 2, 0)
    assert (report.tokens, report.counted) == (8, 5)


def test_packed_blocks_of_prompts_alone_are_left_out(tmp_path):
    training, _ = encode(
        tmp_path,
        [{"prompt": "a b c d", "completion": "e"}, {"prompt": "a", "completion": "b"}],
        max_length=2,
        packing=True,
    )
    assert [shown(block) for block in training] == ["e </s>", "[a] b"]
    assert training.report.notice("training") == (
        "3 of 5 packed training blocks were left out, being prompts alone; task.max_length sets the length"
    )


def test_training_sees_the_same_labels_as_evaluation(tmp_path):
    rows = [{"prompt": "a b", "completion": "c"}, {"prompt": "d", "completion": "e f g a"}]
    training, _ = encode(tmp_path, rows)
    theirs = DataCollatorForLanguageModeling(pad_token_id=0)([dict(example) for example in training])
    ours = LANGUAGE.collate(training, tokenizer())
    assert {key: theirs[key].tolist() for key in ours} == {key: ours[key].tolist() for key in ours}


def test_conversation_without_an_answer_is_left_out(tmp_path):
    training, _ = encode(tmp_path, [turns("a", "b"), turns("a")])
    assert (len(training), training.report.dropped) == (1, 1)


def test_settings_of_the_format_enter_the_fingerprint_of_the_data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "text": "c"}\n' * 20, encoding="utf-8")
    settings = [{}, {"format": "text"}, {"completion_only": False}, {"packing": True}]
    prints = {
        LANGUAGE.read(TaskConfig(**{"kind": "causal-lm", "train": str(path), **given})).fingerprint
        for given in settings
    }
    assert len(prints) == 4


def test_settings_that_do_not_fit(tmp_path):
    with pytest.raises(ConfigError, match=r"task\.packing is true but task\.kind is 'text-classification'; it is for"):
        make_config({"model": "m", "task": {"kind": "text-classification", "train": "d", "packing": True}})
    with pytest.raises(ConfigError, match=r"task\.format='alpacca' .*did you mean 'alpaca'"):
        make_config({"model": "m", "task": {"kind": "causal-lm", "train": "d", "format": "alpacca"}})
    path = tmp_path / "a.txt"
    path.write_text("a b c\n" * 20, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        LANGUAGE.read(TaskConfig(kind="causal-lm", train=str(path), format="alpaca"))
    assert str(caught.value) == (
        f"task.format='alpaca' needs rows, but '{path}' is one plain text; give a file with columns, or leave "
        "task.format out"
    )


def test_plain_text_training_with_an_evaluation_table(tmp_path):
    (tmp_path / "a.txt").write_text("a b c d e f g a\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "a b"}\n{"text": "c"}\n', encoding="utf-8")
    task = TaskConfig(
        kind="causal-lm", train=str(tmp_path / "a.txt"), evaluation=str(tmp_path / "b.jsonl"), max_length=4
    )
    training, evaluation = LANGUAGE.encode(task, LANGUAGE.read(task), tokenizer())
    assert [shown(block) for block in training] == ["a b c d", "e f g a"]
    assert [shown(block) for block in evaluation] == ["a b c"]
    assert training.report.blocks == 2


def test_validation_never_touches_the_evaluation_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "a", "completion": "{n}"}}\n' for n in range(40)), encoding="utf-8")
    splits = [
        LANGUAGE.read(
            TaskConfig(
                kind="causal-lm", train=str(path), evaluation=str(other), evaluate_on="validation", validation=0.25
            )
        )
        for other in (tmp_path / "absent.jsonl", tmp_path)
    ]
    assert splits[0].fingerprint == splits[1].fingerprint
    training, held_out = (set(table.columns["completion"]) for table in (splits[0].train, splits[0].evaluation))
    assert (len(training), len(held_out), training & held_out) == (30, 10, set())


@pytest.fixture(scope="module")
def stories_tokenizer(stories260k):
    return tf.AutoTokenizer.from_pretrained(stories260k)


@pytest.mark.parametrize(
    "path",
    [
        "instruction/alpaca_random_9k.json",
        "instruction/rasbt_instruction.json",
        "commonsense/ARC-Easy/train.json",
        "gsm8k/train.jsonl",
    ],
)
def test_what_counts_in_real_data_is_the_answer(data_root, stories_tokenizer, path):
    columns = {"text": "question", "text_pair": "answer"} if "gsm8k" in path else {}
    task = TaskConfig(
        kind="causal-lm", train=str(data_root / path), max_length=4096, train_examples=60, eval_examples=5, **columns
    )
    splits = LANGUAGE.read(task)
    training, _ = LANGUAGE.encode(task, splits, stories_tokenizer)
    assert (training.report.cut, training.report.dropped, len(training)) == (0, 0, 60)
    for row, example in enumerate(training):
        kept = [label for label in example["labels"] if label != -100]
        first = len(example["labels"]) - len(kept)
        assert example["labels"][first:] == example["input_ids"][first:]
        assert kept[-1] == stories_tokenizer.eos_token_id
        answer = splits.train.columns["completion"][row]
        assert kept[:-1] == stories_tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert example["input_ids"][:first] == stories_tokenizer(splits.train.columns["prompt"][row])["input_ids"]
    if "instruction" in path:
        assert "### Response:" in alpaca_prompt("x")
        assert splits.train.columns["prompt"][0].endswith("### Response:\n")


def instruction_run(tmp_path, data_root, stories260k, **task):
    return make_config(
        {
            "model": str(stories260k),
            "task": {
                "kind": "causal-lm",
                "train": str(data_root / "instruction" / "alpaca_random_9k.json"),
                "max_length": 256,
                "train_examples": 160,
                "eval_examples": 24,
                **task,
            },
            "budget": "r=4",
            "calibration": {"examples": 8, "batch_size": 4},
            "training": {
                "learning_rate": 1e-2,
                "max_steps": 20,
                "per_device_train_batch_size": 4,
                "logging_steps": 1,
                "use_cpu": True,
            },
            "output": str(tmp_path),
        }
    )


@pytest.mark.parametrize("packing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_real_model_learns_alpaca(tmp_path, data_root, stories260k, packing):
    config = instruction_run(tmp_path, data_root, stories260k, packing=packing)
    prepared = prepare(config)
    before = prepared.task.evaluate(prepared.base.model, prepared.base.tokenizer, prepared.evaluation, batch_size=32)
    folder = execute(config)
    after = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert after["tokens"] == before.tokens == prepared.evaluation.report.counted
    assert after["loss"] < before.loss - 0.3
    losses = [row["loss"] for row in read_rows(folder / "history.jsonl") if "loss" in row]
    assert sum(losses[-5:]) < sum(losses[:5])
