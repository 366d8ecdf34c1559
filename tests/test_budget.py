"""Budgets as people write them, and the sentences for those that cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailora.budget import Budget
from tailora.errors import BudgetError
from tailora.targets import Target

TARGETS = [Target("a", "ffn.up", 0, (10, 6)), Target("b", "ffn.down", 0, (4, 3), experts=5)]


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("r=8", 8 * 16 + 8 * 7 * 5),
        ("R = 2", 2 * 16 + 2 * 7 * 5),
        ("2.4M", 2_400_000),
        ("300k", 300_000),
        ("1.2B", 1_200_000_000),
        ("2_000", 2000),
        ("2,000", 2000),
        ("1e6", 1_000_000),
        (500, 500),
        ("500", 500),
        ("0.5%", 200),
        ("0.1%", 40),
        ("12MB", 3_000_000),
        ("12MiB", 3 * 2**20),
        ("12MB@bf16", 6_000_000),
        ("4kb", 1000),
    ],
)
def test_forms(text, params):
    assert Budget.parse(text).params(TARGETS, model_params=40_000) == params


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("r=0", "the rank must be at least 1"),
        ("r=-3", "the rank must be at least 1"),
        ("r=2.5", "'2.5' is not a whole number"),
        ("r=", "is not a whole number"),
        ("-5", "not a finite amount above zero"),
        ("0", "not a finite amount above zero"),
        ("nan", "cannot be read"),
        ("inf", "cannot be read"),
        ("1e999", "not a finite amount above zero"),
        ("5 apples", "budget '5 apples' cannot be read; write it as 'r=8', '2.4M'"),
        ("", "cannot be read"),
        ("0.4", "less than one parameter"),
        ("150%", "more than the whole model"),
        ("2.4M@bf16", "'@' needs a size"),
        ("12MB@int3", "'@' needs a size"),
        (True, "neither text nor a whole number"),
        (3.5, "neither text nor a whole number"),
        (None, "neither text nor a whole number"),
    ],
)
def test_sentences(text, sentence):
    with pytest.raises(BudgetError, match=sentence.replace("(", r"\(")):
        Budget.parse(text)


def test_a_share_needs_the_models_size():
    with pytest.raises(BudgetError, match="share of the model, whose size a list of targets does not tell"):
        Budget.parse("1%").params(TARGETS)
    with pytest.raises(BudgetError, match="less than one parameter"):
        Budget.parse("0.0001%").params(TARGETS, model_params=1000)


@given(st.integers(1, 10**12))
def test_whole_numbers_survive_any_form(count):
    assert Budget.parse(count).params(TARGETS) == count
    assert Budget.parse(f"{count:_}").params(TARGETS) == count
    assert Budget.parse(f"{count:,}").params(TARGETS) == count
    assert Budget.parse(f"{count}k").params(TARGETS) == count * 1000


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused_in_one_sentence(text):
    try:
        budget = Budget.parse(text)
    except BudgetError as error:
        assert "\n" not in str(error).replace(repr(text), "")
    else:
        assert budget.value > 0
