"""A column of scores given to text classification: it trains, and says that it is probably regression."""

from __future__ import annotations

import json
import logging

import pytest

from tailora.config import TaskConfig
from tailora.errors import DataError
from tailora.tasks import TASKS


def read(folder, labels, evaluated=None):
    for name, values in (("train", labels), ("test", evaluated or labels)):
        lines = [json.dumps({"text": f"w{row}", "label": value}) for row, value in enumerate(values)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    paths = {"train": str(folder / "train.jsonl"), "evaluation": str(folder / "test.jsonl")}
    return TASKS["text-classification"].read(TaskConfig(kind="text-classification", **paths))


def test_fractions_as_text_are_probably_scores(tmp_path, caplog):
    splits = read(tmp_path, ["5.000", "3.800", "2.600", "5.000"])
    assert len(splits.labels.names) == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"{str(tmp_path / 'train.jsonl')!r}, column 'label' holds 3 different numbers, such as 2.600, and "
        "text-classification makes a class of each; where they are scores, use the task kind regression"
    ]
    assert caplog.records[0].name == "tailora.data"
    assert caplog.records[0].levelno == logging.WARNING


def test_the_warning_comes_before_a_score_that_training_lacks(tmp_path, caplog):
    with pytest.raises(DataError, match=r"the label '1\.234', which the training data lacks"):
        read(tmp_path, ["5.000", "3.800"], ["1.234"])
    assert "use the task kind regression" in caplog.text


@pytest.mark.parametrize(("count", "told"), [(50, False), (51, True)])
def test_very_many_whole_numbers(tmp_path, caplog, count, told):
    read(tmp_path, list(range(count)))
    assert ("holds 51 different numbers, such as 50, and" in caplog.text) == told


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1],
        [0.0, 1.0],
        ["1.000", "0.000"],
        ["pos", "neg"],
        ["1.5", "none"],
        ["nan", "inf"],
        [f"intent {number}" for number in range(60)],
    ],
    ids=str,
)
def test_classes_are_left_in_peace(tmp_path, caplog, labels):
    read(tmp_path, labels)
    assert not caplog.records


def test_the_scores_of_sts_b(caplog, data_root):
    path = str(data_root / "glue" / "STS-B" / "train.tsv")
    columns = {"text": "sentence1", "text_pair": "sentence2", "label": "score"}
    TASKS["text-classification"].read(TaskConfig(kind="text-classification", train=path, evaluation=path, **columns))
    assert "column 'score' holds 205 different numbers, such as" in caplog.text
