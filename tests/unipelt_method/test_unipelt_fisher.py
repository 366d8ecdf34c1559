"""The exact Fisher of UniPELT's parameters, and masks over them."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from unipelt_cases import batch_of, build, logits, trainable, wrap

import models
import survey
import tailora
from reference import elementwise_slow as slow
from reference import gradients_slow
from tailora.signals.elementwise import elementwise_fisher
from tailora.unipelt import UniPELTConfig


def error(found, wanted):
    """Return the largest difference, seen against the largest value of its tensor."""
    assert found.keys() == wanted.keys()
    return max(float((found[key] - wanted[key]).abs().max() / wanted[key].abs().max()) for key in wanted)


def loop(model, name, batches, **kw):
    return slow.fisher(model, list(trainable(model)), batches, gradients_slow.LOSSES[models.BUILDERS[name][1]], **kw)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "options",
    # Prefixes as long as a batch, or as the two examples that are looked at first, must not be taken for examples.
    [{"prefix_length": 2}, {"prefix_length": 4}, {"prefix_length": 3, "prefix_projection": 5}],
)
def test_it_equals_the_loop_from_whole_batches(name, attention, options):
    model, batches = wrap(build(name, attention=attention, scale=4.0), **options), models.batches(name, (4, 3, 2, 1))
    assert any((~batch["attention_mask"].bool()).any() for batch in batches)
    wanted = loop(model, name, batches)
    for check in (True, False):
        found = elementwise_fisher(model, batches, check=check)
        assert found.one_by_one == ""
        assert found.examples == 10
        assert found.unreached == ()
        assert error(found.tensors, wanted) < 1e-10
    alone = elementwise_fisher(model, batches, one_by_one=True)
    assert error(alone.tensors, wanted) < 1e-10


def test_gates_per_token_in_an_encoder_and_absolute_gradients():
    model, batches = wrap(build("bert", scale=4.0), gate="token"), models.batches("bert")
    found = elementwise_fisher(model, batches, reduction="absolute")
    assert found.one_by_one == ""
    assert error(found.tensors, loop(model, "bert", batches, reduce=torch.abs)) < 1e-10


OTHERS = {
    "xlm-roberta": ("encoder", tf.XLMRobertaForSequenceClassification, tf.XLMRobertaConfig, survey.SIZES),
    # The prefix lies outside of the window, and is seen all the same.
    "mistral": ("decoder", tf.MistralForCausalLM, tf.MistralConfig, {**survey.ROPE, "sliding_window": 3}),
    "qwen2": ("decoder", tf.Qwen2ForCausalLM, tf.Qwen2Config, survey.ROPE),
    "gemma3": ("decoder", tf.Gemma3ForCausalLM, tf.Gemma3TextConfig, survey.ROPE),
    "phi": ("decoder", tf.PhiForCausalLM, tf.PhiConfig, survey.SIZES),
    "llama-classifier": ("encoder", tf.LlamaForSequenceClassification, tf.LlamaConfig, survey.ROPE),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures(name):
    family, cls, config_class, options = OTHERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = cls(config_class(**options, num_labels=3)).double().eval()
    model, batches = wrap(base), survey.batches_of(family)
    found = elementwise_fisher(model, batches)
    assert found.one_by_one == ""
    assert found.unreached == ()
    wanted = slow.fisher(model, list(trainable(model)), batches, survey.LOSS[family])
    assert error(found.tensors, wanted) < 1e-10


def test_an_image_model():
    model, batches = wrap(build("vit", scale=4.0)), models.batches("vit")
    batches = [{**batch, "pixel_values": batch["pixel_values"].double()} for batch in batches]
    found = elementwise_fisher(model, batches)
    assert found.one_by_one == ""
    assert error(found.tensors, loop(model, "vit", batches)) < 1e-10


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_training_mode_under_gradient_checkpointing(name):
    """Without dropout that is the same Fisher."""
    model, batches = wrap(build(name, scale=4.0)), models.batches(name)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    wanted = elementwise_fisher(model, batches).tensors
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert error(elementwise_fisher(model, batches, mode="train").tensors, wanted) < 1e-9


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_mask_keeps_exactly_as_many_and_the_rest_keeps_its_bits(name, tmp_path):
    config = UniPELTConfig(
        lora_rank=2, prefix_length=3, bottleneck=3, task_type=models.TASK_TYPES[models.BUILDERS[name][1]]
    )
    model, batches = wrap(build(name, dtype=torch.float32), config), models.batches(name)
    mask = tailora.fisher_mask(model, batches, keep=0.3, warmup_steps=4)
    tensors = mask.tensors
    assert len(tensors) == 34
    assert sum(int(one.sum()) for one in tensors.values()) == mask.kept == int(0.3 * mask.total)
    before = {key: p.detach().clone() for key, p in trainable(model).items()}
    start = logits(model, batch_of(name))
    optimizer = mask.optimizer(torch.optim.AdamW, lr=1e-2)
    model.train()
    for step in range(5):
        model(**batches[step % 2]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    now = mask.parameters(model)
    moved = 0
    for key, kept in tensors.items():
        assert torch.equal(now[key].detach()[~kept], before[key][~kept]), key
        moved += int((now[key].detach()[kept] != before[key][kept]).sum())
    assert moved > 0.8 * mask.kept
    assert not torch.equal(logits(model, batch_of(name)), start)
    mask.save(tmp_path / "mask")
    assert tailora.FisherMask.load(tmp_path / "mask").hash == mask.hash
