"""Folders of images: classes, colours, splits, and what is said of damaged ones."""

from __future__ import annotations

import numpy as np
import pytest
from checks import check_run, tiny_config
from PIL import Image
from test_image_classification import save_vit

from tailora.artifacts import read_json
from tailora.config import TaskConfig
from tailora.errors import DataError
from tailora.tasks import TASKS, image_folders
from tailora.tasks.image_folders import decode, read_image_folder
from tailora.tasks.images import Preparation

TASK = TASKS["image-classification"]


def save_shapes(folder, *, count=12, size=24, ending="png"):
    """Bright and dark squares of noise, one folder per class."""
    draw = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 40)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(level - 30, level + 30, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.{ending}")
    return str(folder)


def read(source, **settings):
    return TASK.read(TaskConfig(kind="image-classification", train=source, **settings))


def test_a_run(tmp_path):
    task = {"kind": "image-classification", "train": save_shapes(tmp_path / "shapes"), "validation": 0.25}
    config = tiny_config(tmp_path, save_vit(tmp_path / "vit"), task, max_steps=12)
    scores, records = check_run(config)
    assert scores["accuracy"] == 1
    assert sorted(record["label"] for record in records) == ["bright"] * 3 + ["dark"] * 3
    assert all(record["text"].startswith(record["label"] + "/") for record in records)
    (counts,) = (tmp_path / "runs").glob("*/counts.json")
    assert read_json(counts)["head_params"] > 0


def test_files_are_decoded_for_a_batch_and_not_before(tmp_path, monkeypatch):
    opened = []
    whole = image_folders.decode
    monkeypatch.setattr("tailora.tasks.images.decode", lambda *given: opened.append(given) or whole(*given))
    splits = read(save_shapes(tmp_path / "shapes"))
    task = TaskConfig(kind="image-classification", train=str(tmp_path / "shapes"))
    training, _ = TASK.encode(task, splits, None)
    data = TASK.dataset(training)
    assert (len(data), opened) == (len(training), [])
    batch = TASK.collate([data[0], data[1]], Preparation(16, 16, 3, (0.5,) * 3, (0.5,) * 3))
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert len(opened) == 2


@pytest.mark.parametrize("ending", ["png", "jpg", "JPEG", "bmp", "webp"])
def test_every_kind_of_file(tmp_path, ending):
    splits = read(save_shapes(tmp_path / "shapes", count=4, ending=ending))
    assert splits.labels.names == ("bright", "dark")
    image = splits.train.columns["image"][0]
    assert decode(image.path, 3).shape == (24, 24, 3)


def test_colours_are_what_the_model_reads(tmp_path):
    colours = np.zeros((5, 4, 3), dtype=np.uint8)
    colours[..., 0] = 255
    Image.fromarray(colours).save(tmp_path / "red.png")
    Image.fromarray(np.arange(20, dtype=np.uint8).reshape(5, 4)).save(tmp_path / "grey.png")
    assert np.array_equal(decode(str(tmp_path / "red.png"), 3), colours)
    # ITU-R 601: red weighs 0.299.
    assert np.array_equal(decode(str(tmp_path / "red.png"), 1), np.full((5, 4, 1), 76, dtype=np.uint8))
    grey = decode(str(tmp_path / "grey.png"), 3)
    assert all(np.array_equal(grey[..., channel], np.arange(20).reshape(5, 4)) for channel in range(3))
    deep = np.arange(20, dtype=np.uint16).reshape(5, 4) * 3000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.allclose(decode(str(tmp_path / "deep.png"), 1)[..., 0], deep / 65535, atol=1e-6)
    Image.fromarray(np.dstack([colours, np.full((5, 4), 9, np.uint8)])).save(tmp_path / "clear.png")
    assert np.array_equal(decode(str(tmp_path / "clear.png"), 3), colours)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(colours).save(tmp_path / "turned.jpg", exif=turned)
    assert decode(str(tmp_path / "turned.jpg"), 3).shape == (4, 5, 3)


def test_splits_and_fingerprints(tmp_path):
    save_shapes(tmp_path / "all" / "train", count=6)
    save_shapes(tmp_path / "all" / "test", count=3)
    source = str(tmp_path / "all")
    splits = read(source, evaluation=source, evaluation_split="test")
    assert (len(splits.train), len(splits.evaluation)) == (12, 6)
    assert read(source, evaluation=source, evaluation_split="test").fingerprint == splits.fingerprint
    Image.new("RGB", (24, 24)).save(tmp_path / "all" / "train" / "dark" / "00.png")
    assert read(source, evaluation=source, evaluation_split="test").fingerprint != splits.fingerprint


def test_sentences(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(DataError, match="is empty; put the images of each class into a folder"):
        read_image_folder(str(folder), "train")
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    with pytest.raises(DataError, match=r"holds 1 image\(s\) but no folder per class"):
        read_image_folder(str(folder), "train")
    (folder / "cats").mkdir()
    with pytest.raises(DataError, match="has only the class folder 'cats'; classification needs two or more"):
        read_image_folder(str(folder), "train")
    (folder / "dogs").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "cats" / "a.png")
    with pytest.raises(DataError, match=r"dogs' has no image \(.png, .jpg, .jpeg, .bmp, .webp\)"):
        read_image_folder(str(folder), "train")
    (folder / "dogs" / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"dogs/text.png' is damaged or cannot be read \(no image that Pillow knows\)"):
        read_image_folder(str(folder), "train")


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp"])
def test_a_file_that_is_cut_off_is_named(tmp_path, ending):
    draw = np.random.default_rng(0)
    path = tmp_path / f"cut.{ending}"
    Image.fromarray(draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"cut.{ending}' is damaged or cannot be read \(.+\); replace or remove it"):
        decode(str(path), 3)
