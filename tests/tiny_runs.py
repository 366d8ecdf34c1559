"""Tiny model folders and data files that whole runs finish on within seconds; no download, no shared data."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import transformers as tf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from tailora.config import RunConfig, make_config

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "fine", "awful", *(f"w{i}" for i in range(40))]


def tokenizer() -> tf.PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        model_max_length=64,
    )


def save_bert(folder: Path) -> Path:
    """A BERT without a classification head, as encoders come."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = tf.BertConfig(
            vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
        )
        tf.BertModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_llama(folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = tf.LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=48,
            head_dim=16,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=3,
        )
        tf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_reviews(folder: Path, *, rows: int = 96, seed: int = 0) -> Path:
    """Sentences whose class is one word of them."""
    draw = random.Random(seed)
    lines = []
    for number in range(rows):
        positive = number % 2 == 0
        words = [f"w{draw.randrange(40)}" for _ in range(draw.randrange(2, 9))]
        words.insert(draw.randrange(len(words)), draw.choice(["good", "fine"] if positive else ["bad", "awful"]))
        lines.append(json.dumps({"text": " ".join(words), "label": "pos" if positive else "neg"}))
    path = folder / f"reviews{seed}.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def save_text(folder: Path, *, lines: int = 120) -> Path:
    """Counting sentences: the next word follows from the last one."""
    draw = random.Random(0)
    starts = [draw.randrange(40) for _ in range(lines)]
    path = folder / "counting.txt"
    path.write_text("".join(" ".join(f"w{(s + i) % 40}" for i in range(8)) + "\n" for s in starts), encoding="utf-8")
    return path


def review_config(folder: Path, **changes) -> RunConfig:
    """A classification run in ``folder``; ``changes`` are merged into its sections."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "bert"
    if not model.exists():
        save_bert(model)
    values = {
        "model": str(model),
        "task": {
            "kind": "text-classification",
            "train": str(save_reviews(folder)),
            "evaluation": str(save_reviews(folder, rows=40, seed=1)),
            "max_length": 16,
        },
        "budget": "r=2",
        "calibration": {"examples": 8, "batch_size": 4},
        "training": {
            "learning_rate": 1e-2,
            "max_steps": 12,
            "per_device_train_batch_size": 8,
            "logging_steps": 4,
            "eval_steps": 6,
            "save_steps": 4,
        },
        "output": str(folder / "runs"),
    }
    return make_config(merged(values, changes))


def text_config(folder: Path, **changes) -> RunConfig:
    """A language-modelling run in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "llama"
    if not model.exists():
        save_llama(model)
    values = {
        "model": str(model),
        "task": {"kind": "causal-lm", "train": str(save_text(folder)), "max_length": 16},
        "budget": "r=2",
        "calibration": {"examples": 8, "batch_size": 4},
        "training": {
            "learning_rate": 1e-2,
            "max_steps": 12,
            "per_device_train_batch_size": 8,
            "logging_steps": 4,
            "save_steps": 4,
        },
        "output": str(folder / "runs"),
    }
    return make_config(merged(values, changes))


def merged(values: dict, changes: dict) -> dict:
    result = dict(values)
    for key, value in changes.items():
        result[key] = {**result.get(key, {}), **value} if isinstance(value, dict) else value
    return result


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
