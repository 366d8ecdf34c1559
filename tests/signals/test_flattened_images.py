"""Vision-language models whose image patches lie along one axis: exact one example at a time, refused together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as tf

import tailora
from reference import gradients_slow as slow
from reference import signals_slow
from tailora.errors import UserError

START, END, IMAGE = 3, 4, 5


@pytest.fixture(scope="module")
def model():
    text = {
        "vocab_size": 61,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    }
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    config = tf.Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        vision_start_token_id=START,
        vision_end_token_id=END,
        video_token_id=6,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tf.Qwen2VLForConditionalGeneration(config).double().eval()


def example(seed, grids, words):
    """One text with an image a grid (time, height, width in patches; four patches make one token)."""
    generator = torch.Generator().manual_seed(seed)
    ids, patches = [], 0
    for grid in grids:
        count = grid[0] * grid[1] * grid[2]
        ids += [START, *[IMAGE] * (count // 4), END]
        patches += count
    ids = torch.tensor([ids + torch.randint(7, 61, (words,), generator=generator).tolist()])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "labels": torch.where(ids > 6, ids, -100),
        "pixel_values": torch.randn(patches, 3 * 2 * 4 * 4, generator=generator, dtype=torch.float64),
        "image_grid_thw": torch.tensor(grids),
    }


def of_one(model, targets, batch):
    """Return one example's gradients; the reference's own loop would cut the patches like rows."""
    weights = [slow.weight_of(model, target) for target in targets]
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for weight in weights:
        weight.requires_grad_(True)
    gradients = torch.autograd.grad(slow.causal_lm(model(**batch), batch), weights)
    for parameter, flag in flags.items():
        parameter.requires_grad_(flag)
    return [slow.oriented(target, g) for target, g in zip(targets, gradients, strict=True)]


def test_one_example_at_a_time_is_exact(model):
    batches = [
        example(0, [(1, 4, 4)], 5),
        example(1, [(1, 4, 8), (1, 2, 2)], 7),  # two images in one text
        example(2, [(1, 2, 2)], 3),
    ]
    found = tailora.profile(model, batches, ("fisher", "gradient_norm", "activation_second_moment"))
    assert {target.stack for target in found.targets} == {"vision", "text"}
    assert (found.meta["loss"], found.meta["examples"], found.meta["one_by_one"]) == ("causal-lm", 3, "")
    examples = [of_one(model, found.targets, batch) for batch in batches]
    np.testing.assert_allclose(found.signals["fisher"], slow.fisher_trace(examples), rtol=1e-10)
    norms = [signals_slow.gradient_norm(examples, i) for i, _ in enumerate(found.targets)]
    np.testing.assert_allclose(found.signals["gradient_norm"], norms, rtol=1e-10)
    assert (found.signals["fisher"] > 0).all()


def test_every_patch_is_a_position(model):
    batch, held = example(0, [(1, 4, 4)], 5), []
    target = next(t for t in tailora.find_targets(model) if t.stack == "vision")
    handle = model.get_submodule(target.name).register_forward_hook(lambda _, args, __: held.append(args[0]))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    found = tailora.profile(model, [batch], ("activation_second_moment",), targets=[target])
    wanted = sum(float((v**2).sum()) for v in held[0]) / 16
    assert found.signals["activation_second_moment"][0] == pytest.approx(wanted, rel=1e-10)


def joined(examples):
    return {key: torch.cat([one[key] for one in examples]) for key in examples[0]}


def by_chance():
    """Four texts, of which one has an image of four patches: as many patches as rows."""
    one = example(0, [(1, 2, 2)], 5)
    ids = torch.cat([one["input_ids"], torch.randint(7, 61, (3, 8), generator=torch.Generator().manual_seed(0))])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "labels": torch.where(ids > 6, ids, -100),
        "pixel_values": one["pixel_values"],
        "image_grid_thw": one["image_grid_thw"],
    }


@pytest.mark.parametrize("make", [lambda: joined([example(0, [(1, 4, 4)], 5), example(1, [(1, 4, 4)], 5)]), by_chance])
@pytest.mark.parametrize("placement", ["all-linear", "stack:text", "stack:vision"])
@pytest.mark.parametrize("signals", [("fisher",), ("activation_second_moment",)])
def test_several_examples_are_refused(model, make, placement, signals):
    batch = make()
    assert (len(batch["pixel_values"]) == len(batch["labels"])) == (make is by_chance)
    if placement == "stack:text" and signals != ("fisher",):
        # The text's rows are examples, patches or not, and a forward pass has nothing to be taken apart for.
        assert tailora.profile(model, [batch], signals, placement=placement).meta["examples"] == len(batch["labels"])
        return
    with pytest.raises(UserError, match="holds 'image_grid_thw': its patches lie along one axis"):
        tailora.profile(model, [batch], signals, placement=placement)


def test_chance_is_refused_without_the_check_too(model):
    with pytest.raises(UserError, match="give batches of one example"):
        tailora.profile(model, [by_chance()], ("fisher",), check=False)


def test_text_alone_in_batches(model):
    """Rows without images are ordinary rows, also of a model that could take images."""
    ids = torch.randint(7, 61, (3, 8), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    found = tailora.profile(model, [batch], ("fisher",), placement="stack:text")
    examples = [of_one(model, found.targets, row) for row in slow.rows_of(batch)]
    np.testing.assert_allclose(found.signals["fisher"], slow.fisher_trace(examples), rtol=1e-6)
