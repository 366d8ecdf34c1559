"""Pooled hidden states of blocks, and the intrinsic-dimension signal made of them."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
import transformers as tf

import models
from reference import geometry_slow as slow
from tailora.errors import ProfileError, UserError
from tailora.signals.hidden_states import BlockStates, pool
from tailora.signals.intrinsic_dimension import (
    block_dimensions,
    first_of_each,
    intrinsic_dimension_signal,
)
from tailora.targets import Target, find_targets


def collect(model, batches, pooling="mean", **options):
    """Run batches and return the states."""
    states = BlockStates(model, find_targets(model), pooling, **options)
    states.start()
    with torch.no_grad():
        for batch in batches:
            model(**batch)
            states.commit(batch)
    states.stop()
    return states


def slow_pool(hidden, mask, pooling):
    """One row at a time."""
    rows = []
    for row, real in zip(hidden, mask.bool(), strict=True):
        kept = row[real]
        rows.append({"mean": kept.mean(0), "last": kept[-1], "first": kept[0]}[pooling])
    return torch.stack(rows).numpy()


def hidden_of(model, batch):
    """What transformers itself calls the hidden states."""
    with torch.no_grad():
        return model(**batch, output_hidden_states=True)


@pytest.mark.parametrize("pooling", ["mean", "last", "first"])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "deberta", "opt", "mixtral"])
def test_states_are_the_models_hidden_states(name, pooling):
    model = models.build(name)
    batches = models.batches(name)
    found = collect(model, batches, pooling).result()
    assert found.examples == 7
    assert [(block.stack, block.depth) for block in found.blocks] == [("", 0), ("", 1)]
    wanted = [
        np.concatenate([slow_pool(hidden_of(model, b).hidden_states[i], b["attention_mask"], pooling) for b in batches])
        for i in range(2)
    ]
    # The last of transformers' hidden states is often normalised; the two before are block inputs everywhere.
    np.testing.assert_allclose(found.array(0, 0), wanted[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.array(0, 1), wanted[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.array(1, 0), wanted[1], rtol=1e-5, atol=1e-6)
    assert found.slot(1, 0) == found.slot(0, 1), "a state that is the next block's input is held once"
    assert found.array(1, 1).dtype == np.float32
    assert found.array(1, 1).shape == found.array(0, 0).shape


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_two_stacks_have_masks_of_their_own(pooling):
    model = models.build("t5")
    batch = models.batches("t5", sizes=(4,))[0]
    found = collect(model, [batch], pooling).result()
    assert [(b.stack, b.depth) for b in found.blocks] == [
        ("encoder", 0),
        ("encoder", 1),
        ("decoder", 0),
        ("decoder", 1),
    ]
    out = hidden_of(model, batch)
    encoder = slow_pool(out.encoder_hidden_states[1], batch["attention_mask"], pooling)
    decoder = slow_pool(out.decoder_hidden_states[1], batch["labels"] != -100, pooling)
    np.testing.assert_allclose(found.array(0, 1), encoder, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.array(2, 1), decoder, rtol=1e-5, atol=1e-6)
    given = {**batch, "decoder_attention_mask": torch.ones_like(batch["labels"])}
    given["decoder_attention_mask"][:, 2:] = 0
    found = collect(model, [given], pooling).result()
    states = hidden_of(model, given).decoder_hidden_states[1]
    np.testing.assert_allclose(
        found.array(2, 1), slow_pool(states, given["decoder_attention_mask"], pooling), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("pooling", ["mean", "last", "first"])
def test_padding_on_the_left_is_passed_over(pooling):
    """Position 0 of such a row holds padding, whose states say nothing of the example."""
    model = models.build("bert")
    batch = {key: value.flip(1) if value.ndim == 2 else value for key, value in models.batches("bert")[0].items()}
    assert not batch["attention_mask"][:, 0].all()
    found = collect(model, [batch], pooling).result()
    hidden = hidden_of(model, batch).hidden_states
    for place, (index, side) in enumerate([(0, 0), (0, 1), (1, 1)]):
        wanted = slow_pool(hidden[place], batch["attention_mask"], pooling)
        np.testing.assert_allclose(found.array(index, side), wanted, rtol=1e-5, atol=1e-6)


def test_a_shared_block_counts_from_first_input_to_last_output():
    model = models.build("albert")
    batch = models.batches("albert", sizes=(4,))[0]
    found = collect(model, [batch]).result()
    assert len(found.blocks) == 1
    states = hidden_of(model, batch).hidden_states
    assert len(states) == 3
    for side, hidden in ((0, states[0]), (1, states[-1])):
        wanted = slow_pool(hidden, batch["attention_mask"], "mean")
        np.testing.assert_allclose(found.array(0, side), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [5, 7])
def test_time_first_states_are_turned(length):
    config = tf.XLNetConfig(vocab_size=61, d_model=16, n_layer=2, n_head=2, d_inner=24, num_labels=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.XLNetForSequenceClassification(config).eval()
    generator = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randint(3, 61, (5, length), generator=generator)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    found = collect(model, [batch]).result()
    states = hidden_of(model, batch).hidden_states[1]
    np.testing.assert_allclose(found.array(0, 1), states.mean(1).numpy(), rtol=1e-5, atol=1e-6)


def test_images_have_no_mask():
    config = tf.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.ViTForImageClassification(config).eval()
    batch = {"pixel_values": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    found = collect(model, [batch]).result()
    np.testing.assert_allclose(
        found.array(0, 1), hidden_of(model, batch).hidden_states[1].mean(1).numpy(), rtol=1e-5, atol=1e-6
    )


def test_a_pass_counts_when_it_is_committed_and_only_then():
    model = models.build("llama")
    one, two = models.batches("llama")
    states = BlockStates(model, find_targets(model))
    with states:
        states.start()
        states.start()
        with pytest.raises(ProfileError, match="no complete forward pass"):
            states.commit(one)
        model(**two)  # thrown away by the next call
        model(**one)
        assert states.commit(one) == 4
        model(**two)
        states.clear()
        with pytest.raises(ProfileError, match="no complete forward pass"):
            states.commit(two)
        model(**two)
        assert states.commit(two, rows=torch.tensor([True, False, True])) == 2
        with pytest.raises(ProfileError, match="no complete forward pass"):
            states.commit(two)
        states.stop()
        model(**two)
        found = states.result()
        assert found.examples == 6
        again = collect(model, [one, two]).result()
        keep = [0, 1, 2, 3, 4, 6]
        for block in (0, 1):
            for side in (0, 1):
                np.testing.assert_array_equal(found.array(block, side), again.array(block, side)[keep])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_failed_pass_is_no_pass():
    model = models.build("llama")
    batch = models.batches("llama")[0]
    states = BlockStates(model, find_targets(model))
    states.start()
    broken = model.lm_head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        model(**batch)
    broken.remove()
    with pytest.raises(ProfileError, match="no complete forward pass"):
        states.commit(batch)
    states.stop()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_flow_and_recomputation_is_not_seen(reentrant):
    batch = models.batches("llama")[0]
    plain = models.build("llama")
    wanted = collect(plain, [batch]).result()
    model = models.build("llama").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    states = BlockStates(model, find_targets(model))
    states.start()
    loss = model(**batch, use_cache=False).loss
    held = list(states._pass.pooled.values())
    loss.backward()
    states.commit(batch)
    states.stop()
    assert all(not tensor.requires_grad for tensor in held)
    for block in (0, 1):
        np.testing.assert_allclose(states.result().array(block, 1), wanted.array(block, 1), rtol=1e-4, atol=1e-5)
    plain(**batch).loss.backward()
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_inference_mode():
    model = models.build("llama")
    batch = models.batches("llama")[0]
    states = BlockStates(model, find_targets(model))
    states.start()
    with torch.inference_mode():
        model(**batch)
        states.commit(batch)
    states.stop()
    wanted = collect(model, [batch]).result()
    np.testing.assert_array_equal(states.result().array(1, 0), wanted.array(1, 0))


def test_rows_go_to_files_and_the_files_go_away():
    model = models.build("bert")
    batches = models.batches("bert", sizes=(4, 3, 5))
    held = collect(model, batches).result()
    states = collect(model, batches, spill_bytes=500)
    folder = states._rows.folder
    assert folder is not None
    assert any(folder.iterdir())
    for block in (0, 1):
        for side in (0, 1):
            np.testing.assert_array_equal(states.result().array(block, side), held.array(block, side))
    states.close()
    assert not folder.exists()
    with pytest.raises(ProfileError, match="no hidden states"):
        states.result()
    folder = None

    def fail():
        nonlocal folder
        with BlockStates(model, find_targets(model), spill_bytes=0) as inner:
            inner.start()
            model(**batches[0])
            inner.commit(batches[0])
            folder = inner._rows.folder
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert folder is not None
    assert not folder.exists()
    dropped = collect(model, batches, spill_bytes=0)
    folder = dropped._rows.folder
    del dropped
    gc.collect()
    assert not folder.exists()


def test_an_end_that_stops_being_the_same_tensor_gets_its_earlier_rows():
    model = models.build("llama")
    one, two = models.batches("llama")
    states = BlockStates(model, find_targets(model))
    states.start()
    with torch.no_grad():
        model(**one)
        states.commit(one)
        assert states.result().slot(1, 0) == states.result().slot(0, 1)
        doubled = model.model.layers[0].register_forward_hook(lambda _m, _a, out: out * 2)
        model(**two)
        states.commit(two)
    doubled.remove()
    states.stop()
    found = states.result()
    assert found.slot(1, 0) != found.slot(0, 1)
    np.testing.assert_array_equal(found.array(1, 0)[:4], found.array(0, 1)[:4])
    np.testing.assert_allclose(found.array(1, 0)[4:], 2 * found.array(0, 1)[4:], rtol=1e-5)


def test_padding_may_hold_anything():
    states = torch.ones(2, 3, 4)
    states[0, 2] = torch.nan
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert (pool(states, mask, "mean") == 1).all()
    assert (pool(states, mask, "last") == 1).all()
    left = torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert pool(states, left, "last")[0].isnan().all()
    assert pool(states, torch.zeros(2, 3), "mean").isnan().all()
    assert pool(states, torch.zeros(2, 3), "last").isnan().all()


def test_what_cannot_be_collected_is_said():
    model = models.build("bert")
    targets = find_targets(model)
    batch = models.batches("bert")[0]
    with pytest.raises(UserError, match="unknown pooling 'maen'; did you mean 'mean'"):
        BlockStates(model, targets, "maen")
    with pytest.raises(UserError, match="none of the 1 targets lies in a block"):
        BlockStates(model, [t for t in targets if t.depth is None][:1])
    with pytest.raises(ProfileError, match="target 'classifier' lies in no module list"):
        BlockStates(model, [Target("classifier", "other", 0, (3, 16))])
    states = BlockStates(model, targets)
    states.start()
    empty = {**batch, "attention_mask": batch["attention_mask"].clone()}
    empty["attention_mask"][2] = 0
    with torch.no_grad():
        model(**empty)
        with pytest.raises(ProfileError, match="example 2 at block '.*layer.0' is not finite"):
            states.commit(empty)
        model(**empty)
        assert states.commit(empty, rows=[0, 1, 3]) == 3
        model(**batch)
        with pytest.raises(ProfileError, match=r"held 4 examples and the batch committed has \[2\]"):
            states.commit({key: value[:2] for key, value in batch.items()})
    states.stop()


@pytest.fixture(scope="module")
def bert_states():
    """A tiny BERT's states on 120 examples, three of them repeated."""
    model = models.build("bert")
    batches = models.batches("bert", sizes=(60, 57))
    batches.append({key: value[:3] for key, value in batches[0].items()})
    return model, collect(model, batches)


def test_the_signal_is_the_dimension_of_each_end(bert_states):
    model, states = bert_states
    targets = find_targets(model)
    found = states.result()
    signal = intrinsic_dimension_signal(found, targets, seed=3, replicates=4)
    assert signal.shape == (len(targets), 2, 5)
    assert signal.dtype == np.float64
    halves = [np.sort(g[:60]) for r in [np.random.default_rng(3)] for g in [r.permutation(120) for _ in range(4)]]
    place = {(b.stack, b.depth): i for i, b in enumerate(found.blocks)}
    for index, target in enumerate(targets):
        if target.depth is None:
            assert np.isnan(signal[index]).all()
            continue
        block = place[target.stack, target.depth]
        for side in (0, 1):
            rows = np.asarray(found.array(block, side))
            kept = first_of_each(rows)
            assert len(kept) == 117
            assert signal[index, side, 0] == pytest.approx(slow.twonn(rows[kept]), rel=1e-9)
            half = [r for r in halves[2] if r in set(kept)]
            assert signal[index, side, 3] == pytest.approx(slow.twonn(rows[half]), rel=1e-9)
            if block:
                break


def test_the_signal_s_noise_and_duplicates(bert_states):
    _, states = bert_states
    found = block_dimensions(states.result(), 0, 20)
    assert (found.duplicates == 3).all()
    assert found.examples == 120
    spread = found.values[:, :, 1:].std(axis=2, ddof=1)
    assert (spread > 0.03 * found.values[:, :, 0]).all()
    assert (found.values == block_dimensions(states.result(), 0, 20).values).all()
    assert (found.values[:, :, 1:] != block_dimensions(states.result(), 1, 20).values[:, :, 1:]).all()
    other = block_dimensions(states.result(), 0, 2, method="levina-bickel", k=10)
    assert other.method == "levina-bickel, k 10"
    assert np.isfinite(other.values).all()


def test_a_constant_end_has_no_dimension():
    # [CLS] before any attention is the same vector in every example.
    model = models.build("bert")
    batches = models.batches("bert", sizes=(60,))
    batches[0]["input_ids"][:, 0] = 5
    found = block_dimensions(collect(model, batches, "first").result(), 0, 3)
    assert np.isnan(found.values[0, 0]).all()
    assert np.isfinite(found.values[0, 1]).all()
    assert found.duplicates[0, 0] == 59


def test_too_few_examples_are_refused(bert_states):
    model, _ = bert_states
    few = collect(model, models.batches("bert")).result()
    with pytest.raises(UserError, match="7 examples are too few .* profile at least 22"):
        block_dimensions(few, 0)


def test_zeros_of_both_signs_are_one_number():
    assert first_of_each(np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]], dtype=np.float32)).tolist() == [0, 2]
