"""Class labels and splits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailora.data import Labels, carve, sample
from tailora.errors import DataError
from tiny_runs import review_config


def test_ids_keep_their_order_and_names_are_sorted():
    assert Labels.from_training(["10", "2", "1"], "d", "label").names == ("1", "2", "10")
    assert Labels.from_training([2, 0, 1.0], "d", "label").names == ("0", "1", "2")
    assert Labels.from_training(["pos", "neg"], "d", "label").names == ("neg", "pos")


def test_encode_is_the_inverse():
    labels = Labels.from_training(["b", "a", "c", "a"], "d", "label")
    assert [labels.names[i] for i in labels.encode(["c", "a"], "d", "label")] == ["c", "a"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["a", "a"], "only the class 'a'"),
        (["a", None], "row 2 has no label"),
        (["a", ""], "row 2 has no label"),
        (["a", 0.5], "row 2 has the label 0.5"),
    ],
)
def test_bad_training_labels(values, words):
    with pytest.raises(DataError, match=words):
        Labels.from_training(values, "d.csv", "label")


def test_label_that_training_lacks():
    labels = Labels.from_training(["a", "b"], "d", "label")
    with pytest.raises(
        DataError, match=r"'e.csv', row 2 has the label 'c', which the training data lacks \(it has a, b"
    ):
        labels.encode(["a", "c"], "e.csv", "label")


@given(st.integers(0, 300), st.none() | st.integers(1, 400), st.integers(0, 5))
def test_sample_is_a_sorted_subset_and_repeats(rows, count, seed):
    drawn = sample(rows, count, seed=seed)
    assert drawn == sorted(set(drawn)) == sample(rows, count, seed=seed)
    assert len(drawn) == (rows if count is None else min(rows, count))
    assert set(drawn) <= set(range(rows))


@given(st.integers(4, 300), st.floats(0.2, 0.8), st.booleans())
def test_carve_parts_are_disjoint_and_complete(rows, share, contiguous):
    training, validation = carve(rows, share, "d", contiguous=contiguous)
    assert sorted(training + validation) == list(range(rows))
    assert training
    assert validation
    if contiguous:
        assert max(training) < min(validation)


def test_carve_refuses_an_empty_side():
    with pytest.raises(DataError, match="leaves one side empty"):
        carve(3, 0.01, "d")


def test_global_random_state_is_untouched():
    import numpy as np

    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    sample(100, 10)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


@given(st.lists(st.sampled_from("abcde"), min_size=8, max_size=200), st.floats(0.1, 0.8))
def test_stratified_carving_gives_every_class_its_share(classes, share):
    training, validation = carve(len(classes), share, "d", strata=classes)
    assert sorted(training + validation) == list(range(len(classes)))
    assert len(validation) == round(len(classes) * share)
    sizes = {name: classes.count(name) for name in set(classes)}
    given = {name: sum(classes[row] == name for row in validation) for name in sizes}
    if len(training) >= len(sizes):
        assert {classes[row] for row in training} == set(sizes)
    if min(sizes.values()) > 1 and share <= 0.5:
        for name, size in sizes.items():
            assert abs(given[name] - size * len(validation) / len(classes)) <= 1


def test_rare_classes_are_in_both_parts_where_they_can_be():
    classes = ["common"] * 80 + ["rare"] * 2 + ["single"]
    training, validation = carve(83, 0.1, "d", strata=classes)
    assert sorted({classes[row] for row in validation}) == ["common", "rare"]
    assert sorted({classes[row] for row in training}) == ["common", "rare", "single"]


def test_stratified_carving_repeats():
    classes = [0, 1, 0, 1, 1, 0, None, 1] * 5
    assert carve(40, 0.25, "d", strata=classes) == carve(40, 0.25, "d", strata=classes)


def test_early_stopping_holds_out_of_every_class(tmp_path):
    from tailora.early_stopping import hold_out

    config = review_config(tmp_path, training={"eval_steps": 2, "early_stopping_patience": 1})
    examples = [{"labels": int(number >= 90), "number": number} for number in range(100)]
    training, validation = hold_out(config, examples)
    assert sum(example["labels"] for example in validation) == 1
    assert sum(example["labels"] for example in training) == 9
