"""Options of a profile that cannot be used are refused before the model is called."""

from __future__ import annotations

import pytest

import models
import tailora
from tailora.errors import UserError


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"skech": 64}, "unknown option of signals 'skech'; did you mean 'sketch'"),
        ({"sketch": "wide"}, "option sketch='wide' must be a whole number of at least 0"),
        ({"sketch": -1}, "option sketch=-1 must be"),
        ({"moment_sketch": 1.5}, "option moment_sketch=1.5 must be"),
        ({"fresh_rank": 0}, "option fresh_rank=0 must be a whole number of at least 1"),
        ({"newton_iterations": 0}, "option newton_iterations=0 must be"),
        ({"intrinsic_dimension": 5}, "option intrinsic_dimension=5 must be a mapping"),
        ({"intrinsic_dimension": {"discard": 2}}, "discard=2 must be a number"),
        ({"intrinsic_dimension": {"method": "zzz"}}, "unknown method of estimating .* 'zzz'"),
        ({"intrinsic_dimension": {"fit": "x"}}, "unknown fit 'x'"),
        ({"intrinsic_dimension": {"replicates": -1}}, "replicates=-1 must be a whole number"),
        ({"intrinsic_dimension": {"replicas": 3}}, "unknown option of method 'twonn' 'replicas'"),
        ([("sketch", 3)], "must be a mapping"),
    ],
)
def test_before_anything_is_measured(options: object, sentence: str) -> None:
    model = models.build("bert")
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(UserError, match=sentence):
        tailora.profile(model, models.batches("bert"), ("fisher",), options=options)  # type: ignore[arg-type]
    assert not calls


def test_every_option_has_a_use() -> None:
    options = {"sketch": 4, "moment_sketch": 4, "fresh_rank": 2, "intrinsic_dimension": {"replicates": 2}}
    found = tailora.profile(models.build("bert"), models.batches("bert"), ("fisher",), options=options)
    assert found.meta["options"] == options
