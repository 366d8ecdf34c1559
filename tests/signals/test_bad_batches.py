"""Batches and models that cannot be measured: one sentence each, and nothing left behind."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
import transformers as tf

import models
import tailora
from tailora.errors import ProfileError, UserError
from tailora.signals.elementwise import elementwise_fisher


def adapted():
    return peft.get_peft_model(
        models.build("llama"), peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)
    )


def good():
    return models.batches("llama")


BAD = [
    (
        lambda: [good()[0], {k: v for k, v in good()[1].items() if k != "labels"}],
        "batch number 1 has no labels, unlike",
    ),
    (lambda: [good()[0], {**good()[1], "labels": None}], "batch number 1 has no labels, unlike"),
    (lambda: [{key: value[:0] for key, value in good()[0].items()}], "batch number 0 has no example; leave it out"),
    (lambda: [good()[0], {k: v[:0] for k, v in good()[1].items()}], "batch number 1 has no example"),
    (lambda: [good()[0]["input_ids"]], "batch number 0 is a Tensor; give dicts of tensors"),
    (lambda: good()[0], "batches is one dict; give a list of dicts"),
    (lambda: [{**b, "labels": torch.full_like(b["labels"], -100)} for b in good()], "do they have labels"),
]


@pytest.mark.parametrize(("batches", "sentence"), BAD)
def test_both_passes_refuse(batches, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        tailora.profile(models.build("llama"), batches())
    with pytest.raises(UserError, match=sentence):
        elementwise_fisher(adapted(), batches())


def test_examples_that_are_all_infinite_are_named_as_that() -> None:
    model = models.build("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(UserError, match=r"none of the examples .* counted, 7 of them not finite"):
        tailora.profile(model, good(), on_nonfinite="skip")
    for signal in ("activation_second_moment", "activation_spectrum", "explained_variance"):
        with pytest.raises(ProfileError, match=r"the inputs of 'model.layers.1.* are not finite"):
            tailora.profile(model, good(), (signal,))


def test_unlabelled_examples_count_nowhere() -> None:
    batch = models.batches("llama", sizes=(5,))[0]
    batch["labels"][2] = -100
    keep = [0, 1, 3, 4]
    signals = ("fisher", "activation_second_moment", "output_gradient_second_moment", "output_gradient_spectrum")
    model = models.build("llama", dtype=torch.float64)
    # Also where batches are counted as the backward pass goes, from the second one on.
    first = models.batches("llama", sizes=(4,), seed=3)[0]
    found = tailora.profile(model, [first, batch], signals)
    wanted = tailora.profile(model, [first, {key: value[keep] for key, value in batch.items()}], signals)
    assert found.meta["examples"] == wanted.meta["examples"] == 8
    for signal in signals:
        np.testing.assert_allclose(found.signals[signal], wanted.signals[signal], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("extra", ["position_ids", "token_type_ids"])
def test_padding_of_further_keys_does_not_change_which_half_an_example_is_in(extra: str) -> None:
    model = models.build("bert", dtype=torch.float64)
    batches = []
    for batch in models.batches("bert", sizes=(5, 4)):
        ids = batch["input_ids"]
        further = torch.arange(ids.shape[1]).expand_as(ids) if extra == "position_ids" else torch.ones_like(ids)
        batches.append({**batch, extra: further.contiguous()})
    signals = ("fisher", "gradient_cross_spectrum")
    plain = tailora.profile(model, batches, signals, labels="model")
    again = tailora.profile(model, batches, signals, labels="model", batch_size=2)
    for signal in signals:
        # Small directions turn freely where they are nearly equal; in the other half they would all be others.
        wanted = plain.signals[signal]
        np.testing.assert_allclose(again.signals[signal], wanted, rtol=1e-9, atol=1e-3 * np.abs(wanted).max())


def test_several_images_in_one_row_and_none_in_another_are_refused() -> None:
    vision = tf.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = tf.LlamaConfig(
        **models.COMMON, intermediate_size=24, num_key_value_heads=1, head_dim=8, max_position_embeddings=64
    )
    model = tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=60, vision_feature_layer=-1)
    ).eval()
    ids = torch.full((2, 12), 5)
    ids[0, 1:9] = 60  # two images of four patches
    batch = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 8, 8), "labels": ids}
    batch["attention_mask"] = torch.ones_like(ids)
    with pytest.raises(UserError, match="2 examples has 2 images and 1 rows without any"):
        tailora.profile(model, [batch])


class Normalised(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = tf.PretrainedConfig()
        self.dense, self.norm, self.classifier = torch.nn.Linear(6, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 2)

    def forward(self, inputs, labels=None):
        return tf.modeling_outputs.SequenceClassifierOutput(logits=self.classifier(self.norm(self.dense(inputs))))


def test_what_mixes_examples_in_training_mode_is_refused() -> None:
    model = Normalised()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batch = {"inputs": torch.randn(4, 6), "labels": torch.tensor([0, 1, 0, 1])}
    with pytest.raises(UserError, match="'norm' mixes the examples of a batch in training mode"):
        tailora.profile(model, [batch], mode="train")
    tailora.profile(model, [batch])
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


def test_nothing_of_the_callers_is_changed() -> None:
    import random

    model = models.build("bert")
    assert model.config.problem_type is None
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    embeds = torch.randn(4, 7, 16, requires_grad=True)
    batch = {"inputs_embeds": embeds, "labels": torch.tensor([0, 1, 2, 0])}

    def draw(module, args):
        random.random()
        np.random.rand()  # noqa: NPY002

    handle = model.bert.register_forward_pre_hook(draw)
    tailora.profile(model, [batch], mode="train")
    handle.remove()
    assert embeds.grad is None
    assert embeds.requires_grad
    assert model.config.problem_type is None
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # noqa: NPY002


def test_time_first_models_are_taken_one_by_one_without_gradients_too() -> None:
    config = tf.XLNetConfig(vocab_size=61, d_model=16, n_layer=2, n_head=2, d_inner=24)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.XLNetForSequenceClassification(config).double().eval()
    ids = torch.randint(5, 60, (6, 6), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(6) % 2}
    signal = "activation_second_moment"
    alone = tailora.profile(model, [batch], (signal,))
    both = tailora.profile(model, [batch], ("fisher", signal))
    assert alone.meta["one_by_one"]
    np.testing.assert_allclose(alone.signals[signal], both.signals[signal], rtol=1e-10)
