"""Tasks: what they read, load and feed to the model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tailora.config import TaskConfig
from tailora.data import Table
from tailora.errors import ConfigError, DataError
from tailora.evaluation import with_texts
from tailora.tasks import TASKS
from tiny_runs import WORDS, review_config, save_reviews, text_config, tokenizer

CLASSIFY, LANGUAGE = TASKS["text-classification"], TASKS["causal-lm"]


def prepared(config):
    task = TASKS[config.task.kind]
    splits = task.read(config.task)
    base = task.load(config, splits)
    return task, splits, base, *task.encode(config.task, splits, base.tokenizer)


def test_classification_examples(tmp_path):
    task, splits, base, training, evaluation = prepared(review_config(tmp_path))
    assert (len(training), len(evaluation)) == (96, 40)
    assert splits.labels.names == ("neg", "pos")
    assert base.model.config.id2label == {0: "neg", 1: "pos"}
    assert base.new_modules == ("classifier",)
    batch = task.collate(training[:5], base.tokenizer)
    assert batch["labels"].tolist() == [1, 0, 1, 0, 1]
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert base.model(**batch).logits.shape == (5, 2)


def test_head_depends_on_its_seed_alone(tmp_path):
    task, splits, base, *_ = prepared(review_config(tmp_path))
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, again, other = base.fresh(1), base.fresh(1), base.fresh(2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.model.classifier.weight, again.model.classifier.weight)
    assert not torch.equal(one.model.classifier.weight, other.model.classifier.weight)
    assert torch.equal(one.model.bert.pooler.dense.weight, base.model.bert.pooler.dense.weight)
    reloaded = task.load(review_config(tmp_path, seed=5), splits).fresh(1)
    assert torch.equal(one.model.classifier.weight, reloaded.model.classifier.weight)


def test_calibration_is_private_repeats_and_comes_from_training(tmp_path):
    task, _, base, training, _ = prepared(review_config(tmp_path))
    state = torch.random.get_rng_state()
    draw = lambda seed: task.calibration(base.tokenizer, training, count=10, batch_size=4, seed=seed)  # noqa: E731
    first, again, other = draw(0), draw(0), draw(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [len(batch["labels"]) for batch in first] == [4, 4, 2]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))
    assert any(a["input_ids"].tolist() != b["input_ids"].tolist() for a, b in zip(first, other, strict=True))
    known = {tuple(example["input_ids"]) for example in training}
    for batch in first:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            assert tuple(ids[mask.bool()].tolist()) in known


def test_caps_and_validation_share_are_the_same_for_every_seed(tmp_path):
    changes = {"task": {"evaluation": None, "validation": 0.25, "train_examples": 30, "eval_examples": 10}}
    splits = [CLASSIFY.read(review_config(tmp_path, seed=seed, **changes).task) for seed in (0, 1)]
    assert splits[0].fingerprint == splits[1].fingerprint
    assert (len(splits[0].train), len(splits[0].evaluation)) == (30, 10)


def test_evaluating_on_validation_never_touches_the_evaluation_file(tmp_path):
    config = review_config(tmp_path, task={"evaluate_on": "validation", "evaluation": str(tmp_path / "absent.jsonl")})
    splits = CLASSIFY.read(config.task)
    assert (len(splits.train), len(splits.evaluation)) == (86, 10)


def test_label_that_training_lacks(tmp_path):
    config = review_config(tmp_path)
    with open(config.task.evaluation, "a", encoding="utf-8") as stream:
        stream.write('{"text": "w1", "label": "neutral"}\n')
    with pytest.raises(DataError, match="the label 'neutral', which the training data lacks"):
        CLASSIFY.read(config.task)


def test_one_class_only(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text('{"text": "w1", "label": "x"}\n' * 20, encoding="utf-8")
    with pytest.raises(DataError, match="has only the class 'x'"):
        CLASSIFY.read(TaskConfig(kind="text-classification", train=str(path)))


def test_plain_text_is_cut_into_blocks_and_split_contiguously(tmp_path):
    config = text_config(tmp_path)
    task, splits, base, training, evaluation = prepared(config)
    whole = (tmp_path / "counting.txt").read_text(encoding="utf-8")
    assert splits.train.columns["text"][0] + splits.evaluation.columns["text"][0] == whole
    assert {len(example["input_ids"]) for example in training[:-1]} == {16}
    tokens = [token for example in training for token in example["input_ids"]]
    assert tokens == base.tokenizer(splits.train.columns["text"][0])["input_ids"]
    assert all(example["labels"] == example["input_ids"] for example in evaluation)
    batch = task.collate([training[0], {"input_ids": [4, 5], "labels": [4, 5]}], base.tokenizer)
    assert batch["labels"][1].tolist() == [4, 5] + [-100] * 14
    assert batch["attention_mask"].sum(1).tolist() == [16, 2]


def documents(tmp_path, rows, **task):
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = TaskConfig(**{"kind": "causal-lm", "train": str(path), "evaluation": str(path), "max_length": 6, **task})
    return LANGUAGE.encode(config, LANGUAGE.read(config), tokenizer())[0]


def test_prompts_do_not_count_in_the_loss(tmp_path):
    rows = [{"q": "w1 w2", "a": "w3"}, {"q": "w1 w2 w3 w4 w5 w6", "a": "w7"}]
    examples = documents(tmp_path, rows, text="q", text_pair="a")
    ids = [WORDS.index(word) for word in ("w1", "w2", "w3")]
    # The second row has no room left for its completion within six tokens.
    assert examples == [{"input_ids": [*ids, 3], "labels": [-100, -100, ids[2], 3]}]


def test_documents_end_with_the_end_token(tmp_path):
    assert documents(tmp_path, [{"text": "w1 w2"}])[0]["input_ids"][-1] == 3
    with pytest.raises(DataError, match="leaves no token to predict"):
        documents(tmp_path, [{"q": "w1 w2 w3 w4 w5 w6", "a": "w1"}], text="q", text_pair="a")


@pytest.mark.parametrize("kind", ["text-classification", "causal-lm"])
def test_batch_size_does_not_change_the_scores(tmp_path, kind):
    config = (review_config if kind == "text-classification" else text_config)(tmp_path)
    task, splits, base, _, evaluation = prepared(config)
    base.model.train()
    results = [
        task.evaluate(base.model, base.tokenizer, evaluation, batch_size=size, labels=splits.labels)
        for size in (1, 7, 64)
    ]
    assert base.model.training
    for result in results[1:]:
        assert result.loss == pytest.approx(results[0].loss, rel=1e-5)
        assert [r["index"] for r in result.records] == list(range(len(evaluation)))
        for mine, theirs in zip(result.records, results[0].records, strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-5)


def test_model_folders_that_cannot_be_used(tmp_path):
    config = review_config(tmp_path)
    splits = CLASSIFY.read(config.task)

    def refuse(model, words):
        changed = config.model_copy(update={"model": str(model)})
        with pytest.raises(ConfigError, match=words):
            CLASSIFY.load(changed, splits)

    refuse(tmp_path / "absent", "does not exist")
    refuse(tmp_path / "reviews0.jsonl", "is a file")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "no config.json")
    shutil.copytree(tmp_path / "bert", tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    refuse(tmp_path / "pickled", "only the pickle pytorch_model.bin")
    (tmp_path / "pickled" / "pytorch_model.bin").unlink()
    refuse(tmp_path / "pickled", "holds no weights")
    (tmp_path / "broken").mkdir()
    shutil.copytree(tmp_path / "bert", tmp_path / "broken", dirs_exist_ok=True)
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not a tensor file")
    refuse(tmp_path / "broken", "cannot be loaded")


def test_model_without_a_tokenizer(tmp_path):
    config = review_config(tmp_path)
    for path in (tmp_path / "bert").glob("*token*"):
        path.unlink()
    with pytest.raises(ConfigError, match="has no tokenizer"):
        CLASSIFY.load(config, CLASSIFY.read(config.task))


def test_checkpoint_with_a_head_of_another_size_gets_a_new_one(tmp_path):
    config = review_config(tmp_path)
    task, splits, base, *_ = prepared(config)
    base.model.save_pretrained(tmp_path / "two")
    base.tokenizer.save_pretrained(tmp_path / "two")
    same = task.load(config.model_copy(update={"model": str(tmp_path / "two")}), splits)
    assert same.new_weights == ()
    assert same.new_modules == ("classifier",)
    three = save_reviews(tmp_path, rows=12, seed=9)
    with open(three, "a", encoding="utf-8") as stream:
        stream.write('{"text": "w1", "label": "mixed"}\n')
    more = CLASSIFY.read(TaskConfig(kind="text-classification", train=str(three), evaluation=str(three)))
    resized = task.load(config.model_copy(update={"model": str(tmp_path / "two")}), more)
    assert resized.model.classifier.out_features == 3
    assert resized.new_weights == ("classifier",)


@pytest.mark.parametrize(
    ("kind", "row", "shown"),
    [
        ("text-classification", {"text": "a  b", "label": "x"}, "a b"),
        ("text-classification", {"text": "a", "other": "b " * 200, "label": "x"}, "a | b b b"),
        ("regression", {"text": "c" * 300, "label": 1.5}, "c" * 199),
        ("seq2seq", {"text": "question", "other": "answer"}, "question"),
        ("multiple-choice", {"text": "which", "other": ["a", "b"], "label": 1}, "which"),
    ],
)
def test_what_a_reader_sees_of_an_example(kind, row, shown):
    task = TaskConfig(kind=kind, train="t.jsonl", text_pair="other" if "other" in row else None)
    texts = TASKS[kind].shown(task, Table({name: [value] for name, value in row.items()}, "t.jsonl"))
    (record,) = with_texts([{"index": 0}], texts)
    assert record["text"].startswith(shown)
    assert len(record["text"]) <= 200
    assert TASKS["causal-lm"].shown(task, Table({"text": ["a"]}, "t.jsonl")) is None


def test_rare_classes_are_in_both_parts(tmp_path):
    rows = [{"text": f"w{number}", "label": "rare" if number in (3, 4) else "common"} for number in range(40)]
    path = tmp_path / "rare.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    splits = TASKS["text-classification"].read(TaskConfig(kind="text-classification", train=str(path)))
    assert (len(splits.train), len(splits.evaluation)) == (36, 4)
    for table in (splits.train, splits.evaluation):
        assert table.columns["label"].count("rare") == 1


@pytest.mark.parametrize(("limit", "cut"), [(4, 3), (64, 0)])
def test_texts_that_are_cut_are_counted_and_told(tmp_path, caplog, limit, cut):
    rows = [{"text": "w1 w2 w3 w4 w5 w6", "label": number % 2} for number in range(3)] + [{"text": "w1", "label": 1}]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    task = {"train": str(data), "evaluation": str(data), "max_length": limit}
    with caplog.at_level("WARNING"):
        *_, training, _ = prepared(review_config(tmp_path, task=task))
    assert training.report.cut == cut
    assert training.report.rows == 4
    told = "3 of 4 training examples were cut to 4 tokens; task.max_length sets the length"
    assert (told in caplog.text) == bool(cut)
