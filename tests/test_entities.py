"""Entities: spans against known answers and a slow twin, and their F1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.entities_slow import spans_slow
from tailora.evaluation.entities import entity_f1, marks_entities, spans

TAGS = st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]), max_size=10)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("", []),
        ("O O", []),
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("I-PER I-PER O", [("PER", 0, 2)]),
        ("O I-LOC B-LOC I-LOC", [("LOC", 1, 2), ("LOC", 2, 4)]),
        ("B-A-B I-A-B", [("A-B", 0, 2)]),
    ],
)
def test_known_spans(tags, found):
    assert spans(tags.split()) == found


@given(TAGS)
def test_spans_against_every_range_of_words(tags):
    assert spans(tags) == spans_slow(tags)


def test_f1_counts_whole_entities():
    # The example of seqeval's documentation: one of two entities right, MISC one word too long.
    wanted = [
        ["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"],
        ["B-PER", "I-PER", "O"],
    ]
    found = [
        ["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"],
        ["B-PER", "I-PER", "O"],
    ]
    assert entity_f1(zip(wanted, found, strict=True)) == 0.5
    assert entity_f1([(["B-PER"], ["B-LOC"])]) == 0
    assert entity_f1([(["B-PER", "O", "O"], ["B-PER", "B-PER", "O"])]) == pytest.approx(2 / 3)
    assert entity_f1([(["O"], ["O"])]) == 0
    assert entity_f1([(["O"], ["O"]), (["I-PER"], ["B-PER"])]) == 1


@given(TAGS)
def test_f1_of_the_truth_is_one(tags):
    assert entity_f1([(tags, tags)]) == (1 if set(tags) - {"O"} else 0)


def test_which_names_are_tags_of_entities():
    assert marks_entities(["B-PER", "I-PER", "O"])
    assert marks_entities(["I-LOC", "I-PER"])
    for names in (["O"], ["CAP", "O"], ["B-", "O"], ["B-PER", "PER"], ["0", "1"]):
        assert not marks_entities(names)
