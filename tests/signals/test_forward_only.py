"""Profiles of activations alone: a forward pass that computes and holds no more than it has to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

import models
import tailora
from tailora.errors import ProfileError
from tailora.placement import select
from tailora.signals.calling import for_inputs
from tailora.signals.capture import Call, Recorder
from tailora.signals.collect import collect
from tailora.targets import find_targets

ACTIVATIONS = ("activation_second_moment", "activation_spectrum", "explained_variance")


def watched(module: nn.Module, call: Any) -> Any:
    """Call with a module's input before every forward pass of it."""
    return module.register_forward_pre_hook(lambda _, args: call(args[0]))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "vit", "albert", "deberta"])
def test_activations_are_those_of_a_pass_with_gradients(name: str) -> None:
    sizes = (4, 3, 1, 5)
    alone = tailora.profile(models.build(name, dtype=torch.float64), models.batches(name, sizes), ACTIVATIONS)
    both = tailora.profile(
        models.build(name, dtype=torch.float64), models.batches(name, sizes), ("fisher", *ACTIVATIONS)
    )
    assert alone.meta["loss"] == ""
    assert alone.meta["examples"] == both.meta["examples"] == sum(sizes)
    reached = both.signals["activation_second_moment"] > 0
    for signal in ACTIVATIONS:
        wanted = both.signals[signal][reached]
        np.testing.assert_allclose(alone.signals[signal][reached], wanted, rtol=1e-9, atol=1e-7 * wanted.max())


def test_a_language_model_makes_the_logits_of_one_position() -> None:
    model, seen = models.build("llama"), []
    handle = watched(model.lm_head, lambda given: seen.append(given.shape[1]))
    tailora.profile(model, models.batches("llama"), ACTIVATIONS)
    handle.remove()
    assert seen == [1, 1]


def test_a_head_that_is_measured_sees_every_position() -> None:
    model = models.build("llama", dtype=torch.float64)
    targets = [target for target in find_targets(model) if target.role == "head"]
    assert [target.name for target in targets] == ["lm_head"]
    vectors: list[Tensor] = []
    batches = [batch | {"attention_mask": torch.ones_like(batch["input_ids"])} for batch in models.batches("llama")]
    handle = watched(model.lm_head, lambda given: vectors.append(given.detach()))
    found = collect(model, targets, batches, ("activation_second_moment",))
    handle.remove()
    assert found.signals["activation_second_moment"][0] == pytest.approx(
        float(torch.cat([given.flatten(0, 1) for given in vectors]).square().sum(dim=1).mean()), rel=1e-12
    )


def test_labels_that_make_a_decoders_inputs_are_kept() -> None:
    """T5Gemma takes ``logits_to_keep`` and makes its decoder's inputs from the labels."""
    layer: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "layer_types": ["full_attention"] * 2,
    }
    torch.manual_seed(0)
    model = tf.T5GemmaForConditionalGeneration(
        tf.T5GemmaConfig(encoder=layer, decoder=dict(layer), vocab_size=61)
    ).eval()
    batch = models.batches("t5")[0]
    assert for_inputs(model, select(find_targets(model), "all-linear"), batch) == batch
    found = tailora.profile(model, [batch], ("activation_second_moment",))
    assert (found.signals["activation_second_moment"] > 0).all()


def test_inputs_are_let_go_once_they_are_counted() -> None:
    model = models.build("llama")
    targets = select(find_targets(model), "all-linear")
    recorder, counted = Recorder(model, targets, gradients=False), []
    recorder.start()

    def sink(index: int, calls: list[Call]) -> None:
        assert len(calls) == 1
        assert not any(recorder.calls)  # nothing of any layer waits for the end of the pass
        counted.append(targets[index].name)

    recorder.sink = sink
    with torch.no_grad():
        model(**models.batches("llama")[0])
    recorder.stop()
    assert sorted(counted) == sorted(target.name for target in targets)


class Folding(nn.Module):
    """A classifier that folds rows and positions together when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.config = tf.PretrainedConfig()
        self.dense = nn.Linear(6, 6)
        self.classifier = nn.Linear(6, 2)

    def forward(self, inputs: Tensor, fold: Tensor) -> SequenceClassifierOutput:
        given = inputs.flatten(0, 1) if bool(fold.all()) else inputs
        inner = self.dense(given).reshape(inputs.shape)
        return SequenceClassifierOutput(logits=self.classifier(inner.mean(dim=1)))


def folding_batch(*, fold: bool) -> dict[str, Tensor]:
    return {"inputs": torch.randn(4, 3, 6), "fold": torch.full((4,), fold)}


def test_a_batch_of_another_form_than_before_is_refused() -> None:
    batches = [folding_batch(fold=False), folding_batch(fold=True)]
    with pytest.raises(ProfileError, match=r"\[12, 6\] in a batch of 4 examples, unlike in the batches before"):
        tailora.profile(Folding(), batches, ("activation_second_moment",))


def test_a_first_batch_whose_rows_are_no_examples_is_taken_one_by_one() -> None:
    model = Folding()
    batches = [folding_batch(fold=True), folding_batch(fold=False)]
    found = tailora.profile(model, batches, ("activation_second_moment",))
    assert "in a batch of 4 examples" in found.meta["one_by_one"]
    wanted = torch.cat([batch["inputs"].flatten(0, 1) for batch in batches]).square().sum(dim=1).mean()
    place = [target.name for target in found.targets].index("dense")
    assert found.signals["activation_second_moment"][place] == pytest.approx(float(wanted), rel=1e-5)
