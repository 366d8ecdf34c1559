"""What a model is called with: no more than what is looked at afterwards needs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from tailora.signals.elementwise.model import labels_matter
from tailora.signals.examples import example_of, for_model
from tailora.targets import Target


def for_inputs(model: nn.Module, targets: Sequence[Target], batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch for a forward pass whose logits nobody reads.

    Language models of transformers take ``logits_to_keep``: the logits of one position instead of all of them spare a
    product with the whole vocabulary, a quarter of a small model's forward pass, and the memory of its result.

    Args:
        model: The model.
        targets: What is measured; a head among them must see every position.
        batch: The batch.

    Returns:
        What the model is called with.
    """
    given = for_model(batch)
    if "logits_to_keep" not in inspect.signature(model.forward).parameters or "logits_to_keep" in given:
        return given
    makes_inputs_of_labels = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if makes_inputs_of_labels or any(target.role == "head" for target in targets):
        return given
    # Labels are as long as all logits; in a decoder alone they make nothing but the loss.
    return {name: value for name, value in given.items() if name != "labels"} | {"logits_to_keep": 1}


def needs_labels(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    """Tell from one example whether a model's logits depend on the labels it is given.

    Args:
        model: The model.
        batch: A batch of several examples or one.

    Returns:
        Whether they do; true where it cannot be told.
    """
    try:
        one = for_model(example_of(batch, 0, 1))
        return labels_matter(model, one, model(**one))
    except Exception:
        return True
