"""Masks in the Trainer: with the masked optimizer, and with the callback beside the Trainer's own."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers as tf
from mask_cases import adapted, frozen_everywhere, mask_of, moved_everywhere, values

import models
from tailora.errors import UserError
from tailora.masks.optimizer import MaskedOptimizer


class Rows(torch.utils.data.Dataset):
    """The rows of a few tiny batches."""

    def __init__(self, name):
        batch = models.batches(name, sizes=(16,))[0]
        self.rows = [{key: value[i] for key, value in batch.items()} for i in range(16)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def trainer(model, folder, optimizer=None, callbacks=(), name="llama", **settings):
    settings = {
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 5e-3,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "lr_scheduler_type": "linear",
        "seed": 3,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 4,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **settings,
    }
    return tf.Trainer(
        model=model,
        args=tf.TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=Rows(name),
        optimizers=(optimizer, None),
        callbacks=list(callbacks),
    )


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("checkpointing", [False, True])
def test_resumed_equals_uninterrupted(tmp_path, checkpointing):
    def parts():
        model = adapted("llama", torch.float32)
        if checkpointing:
            model.enable_input_require_grads()
        mask = mask_of(model)
        optimizer = mask.optimizer(torch.optim.AdamW, lr=5e-3, weight_decay=0.1, fused=True)
        return model, mask, optimizer

    settings = {"gradient_checkpointing": checkpointing}
    whole, mask, optimizer = parts()
    before = values(whole)
    one = trainer(whole, tmp_path / "whole", optimizer, **settings)
    one.train()
    assert frozen_everywhere(mask, before, whole)
    assert moved_everywhere(mask, before, whole)
    norms = [row["grad_norm"] for row in one.state.log_history if "grad_norm" in row]
    assert len(norms) == 8
    model, again, optimizer = parts()
    assert again.hash == mask.hash
    trainer(model, tmp_path / "resumed", optimizer, **settings).train(
        resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4")
    )
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in whole.named_parameters())


def dense_state(optimizer):
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return sum(s["exp_avg"].numel() for s in optimizer.state.values())


def test_the_callback_equals_the_masked_optimizer(tmp_path):
    ours, theirs = (adapted("bert", torch.float32) for _ in range(2))
    mask = mask_of(ours, "bert")
    before = values(ours)
    # The Trainer decays everything but biases.
    optimizer = mask.optimizer(
        torch.optim.AdamW, lr=5e-3, weight_decay=0.1, fused=True, groups={"*bias": {"weight_decay": 0.0}}
    )
    trainer(ours, tmp_path / "a", optimizer, name="bert").train()
    mask.apply(theirs)
    callback = mask.callback()
    other = trainer(theirs, tmp_path / "b", callbacks=[callback], name="bert")
    other.train()
    assert not isinstance(other.optimizer.optimizer, MaskedOptimizer)
    assert dense_state(other.optimizer) == mask.total + mask.head
    assert frozen_everywhere(mask, before, theirs)
    assert moved_everywhere(mask, before, theirs)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-3, atol=1e-6), name
    # Hooks are gone: whoever goes on trains what they like.
    assert callback.guard is None
    theirs(**models.batches("bert")[0]).loss.backward()
    assert any(p.grad[~mask.tensors[n]].any() for n, p in mask.parameters(theirs).items())


def test_without_the_callback_weight_decay_would_move_what_is_frozen(tmp_path):
    model = adapted("llama", torch.float32)
    mask = mask_of(model)
    before = values(model)
    trainer(model, tmp_path, save_strategy="no").train()
    assert not frozen_everywhere(mask, before, model)


def test_the_callback_resumes(tmp_path):
    def parts():
        model = adapted("llama", torch.float32)
        return model, mask_of(model)

    whole, mask = parts()
    trainer(whole, tmp_path / "whole", callbacks=[mask.callback()]).train()
    model, again = parts()
    before = values(model)
    trainer(model, tmp_path / "resumed", callbacks=[again.callback()]).train(
        resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4")
    )
    assert frozen_everywhere(mask, before, model)
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in whole.named_parameters())


def test_the_callback_leaves_the_masked_optimizer_alone(tmp_path):
    model = adapted("llama", torch.float32)
    mask = mask_of(model)
    before, callback = values(model), mask.callback()
    optimizer = mask.optimizer(torch.optim.AdamW, lr=5e-3)
    trainer(model, tmp_path, optimizer, [callback], max_steps=2, save_strategy="no").train()
    assert frozen_everywhere(mask, before, model)
    assert moved_everywhere(mask, before, model)


def test_the_callback_refuses_what_it_cannot_guard():
    model = adapted("llama", torch.float32)
    mask = mask_of(model)
    with pytest.raises(UserError, match=r"pass optimizers=\(mask.optimizer"):
        mask.callback().on_train_begin(None, None, None, model=model, optimizer=object())


def test_bfloat16_in_the_trainer(tmp_path):
    model = adapted("llama", torch.float32)
    mask = mask_of(model)
    before = values(model)
    optimizer = mask.optimizer(torch.optim.AdamW, lr=5e-3, weight_decay=0.1)
    trainer(model, tmp_path, optimizer, bf16=True, save_strategy="no").train()
    assert frozen_everywhere(mask, before, model)
    assert moved_everywhere(mask, before, model)
