"""Image classification on scikit-learn's digits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as tf
from checks import check_contract, check_run, tiny_config

from tailora.config import TaskConfig
from tailora.errors import ConfigError, DataError
from tailora.tasks import TASKS
from tailora.tasks.images import Preparation

TASK = TASKS["image-classification"]


def save_vit(folder, *, size=16, channels=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = tf.ViTConfig(
            image_size=size,
            patch_size=4,
            num_channels=channels,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
        )
        tf.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def save_digits(folder, name, rows):
    digits = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed").load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    np.savez(folder / f"{name}.npz", images=images[rows], labels=digits.target[rows])
    return str(folder / f"{name}.npz")


def digits_config(tmp_path, *, train, evaluation, **training):
    task = {
        "kind": "image-classification",
        "train": save_digits(tmp_path, "train", slice(0, train)),
        "evaluation": save_digits(tmp_path, "test", slice(1400, 1400 + evaluation)),
    }
    return tiny_config(tmp_path, save_vit(tmp_path / "vit"), task, **training)


def test_contract(tmp_path):
    prepared = check_contract(digits_config(tmp_path, train=100, evaluation=30), loss="classification", head=True)
    assert prepared.base.new_modules == ("classifier",)
    batch = prepared.task.collate(prepared.training[:4], prepared.base.tokenizer)
    assert batch["pixel_values"].shape == (4, 3, 16, 16)
    assert (float(batch["pixel_values"].min()), float(batch["pixel_values"].max())) == pytest.approx((-1, 1), abs=0.1)


def test_a_run(tmp_path):
    scores, records = check_run(digits_config(tmp_path, train=100, evaluation=30, max_steps=6))
    assert scores["primary"] == "accuracy"
    assert scores["accuracy"] == sum(record["correct"] for record in records) / 30
    assert {record["label"] for record in records} <= set("0123456789")
    (saved,) = (tmp_path / "runs").glob("*/adapter/preprocessor_config.json")
    assert "image_mean" in saved.read_text()


def test_fingerprints_follow_the_pixels(tmp_path):
    path = save_digits(tmp_path, "train", slice(0, 40))
    task = TaskConfig(kind="image-classification", train=path, validation=0.25)
    splits = TASK.read(task)
    assert (len(splits.train), len(splits.evaluation)) == (30, 10)
    assert TASK.read(task).fingerprint == splits.fingerprint
    with np.load(path) as arrays:
        images, labels = arrays["images"].copy(), arrays["labels"]
    images[0, 0, 0] += 1
    np.savez(path, images=images, labels=labels)
    assert TASK.read(task).fingerprint != splits.fingerprint


def test_preparation():
    plain = Preparation(4, 4, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    expected = (torch.arange(16.0).reshape(4, 4) / 255 - 0.5) / 0.25
    assert all(torch.allclose(channel, expected) for channel in plain.prepare(grey))
    assert torch.allclose(plain.prepare(grey / 255), plain.prepare(grey), atol=1e-6)
    assert torch.allclose(plain.prepare(grey[..., 0]), plain.prepare(grey))
    flat = plain.prepare(np.full((9, 7, 3), 51, dtype=np.uint8))
    assert torch.allclose(flat, torch.full((3, 4, 4), (0.2 - 0.5) / 0.25), atol=1e-6)
    with pytest.raises(DataError, match="has 3 channels and the model reads 1"):
        Preparation(4, 4, 1, (0.5,), (0.5,)).prepare(np.zeros((4, 4, 3), dtype=np.uint8))


def test_normalisation_of_the_model(tmp_path):
    config = digits_config(tmp_path, train=60, evaluation=10)
    (tmp_path / "vit" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 2]}'
    )
    preparation = TASK.load(config, TASK.read(config.task)).tokenizer
    assert (preparation.mean, preparation.std) == ((0.1, 0.2, 0.3), (1, 1, 2))
    with pytest.raises(ConfigError, match="has no image_size"):
        Preparation.of(config, SimpleNamespace(config=SimpleNamespace(num_channels=3)))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros((4, 3), np.uint8), "labels": np.arange(4)}, r"images \[4, 3\]"),
        ({"images": np.zeros((4, 3, 3), np.uint8), "labels": np.arange(3)}, r"labels \[3\]"),
        ({"images": np.zeros((4, 3, 3), np.uint8)}, "no array 'labels'"),
        ({"image": np.zeros((4, 3, 3), np.uint8), "labels": np.arange(4)}, "no array 'images'; did you mean 'image'"),
        ({"images": np.full((4, 3, 3), np.nan), "labels": np.arange(4)}, "float64 pixels from nan to nan"),
        ({"images": np.full((4, 3, 3), 300), "labels": np.arange(4)}, "int64 pixels from 300 to 300"),
        ({"images": np.zeros((4, 3, 3), np.uint8), "labels": np.zeros(4, int)}, "has only the class '0'"),
        ({"images": np.zeros((4, 3, 3), np.uint8), "labels": np.array([0.5, 1, 0, 1])}, "the label 0.5"),
    ],
)
def test_what_cannot_be_used(tmp_path, arrays, words):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=words):
        TASK.read(TaskConfig(kind="image-classification", train=str(tmp_path / "bad.npz"), validation=0.5))


def test_files_that_are_none(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    for name, words in (("absent.npz", "does not exist"), ("text.npz", "cannot be read")):
        with pytest.raises(DataError, match=words):
            TASK.read(TaskConfig(kind="image-classification", train=str(tmp_path / name)))
