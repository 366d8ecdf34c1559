"""Masks and masked adapters as files."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from mask_cases import adapted, mask_of, train, values

import models
from tailora.errors import PlanMismatchError, UserError
from tailora.masks import FisherMask

BATCHES = models.batches("bert")


def trained(keep=0.02, **kw):
    model = adapted("bert", torch.float32)
    mask = mask_of(model, "bert", keep=keep, **kw)
    train(model, mask.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1), BATCHES, 3)
    return model, mask


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
def test_a_mask_comes_back(tmp_path, keep, name):
    model = adapted("bert")
    mask = mask_of(model, "bert", keep=keep)
    file = mask.save(tmp_path / "new" / name)
    assert file.is_file()
    found = FisherMask.load(tmp_path / "new" / name)
    assert found.hash == mask.hash
    assert found.meta == mask.meta
    assert all(torch.equal(found.tensors[n], t) for n, t in mask.tensors.items())
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    found.apply(model)


def test_a_mask_belongs_to_its_initial_values(tmp_path):
    model, mask = trained()
    mask.save(tmp_path)
    # Trained or fresh: what is frozen is the same.
    FisherMask.load(tmp_path).apply(model)
    FisherMask.load(tmp_path).apply(adapted("bert", torch.float32))
    other = adapted("bert", torch.float32, seed=1)
    with pytest.raises(PlanMismatchError, match="other values than when the mask was made"):
        FisherMask.load(tmp_path).apply(other)
    FisherMask.load(tmp_path).apply(other, check=False)
    with pytest.raises(PlanMismatchError, match="has the shape"):
        FisherMask.load(tmp_path).apply(adapted("bert", torch.float32, r=2))
    with pytest.raises(PlanMismatchError, match="which this model lacks"):
        FisherMask.load(tmp_path).apply(adapted("llama"))
    model.requires_grad_(False)
    with pytest.raises(PlanMismatchError, match="is frozen and the mask trains part of it"):
        FisherMask.load(tmp_path).apply(model)


def test_the_adapter_is_an_ordinary_peft_adapter(tmp_path):
    model, _ = trained()
    with torch.no_grad():
        wanted = model(**BATCHES[0]).logits
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(models.build("bert"), str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**BATCHES[0]).logits, wanted)


def test_masked_base_weights_are_saved_as_ever(tmp_path):
    model = models.build("bert")
    mask = mask_of(model, "bert", keep=0.01)
    train(model, mask.optimizer(torch.optim.AdamW, lr=1e-2), BATCHES, 2)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(p, dict(loaded.named_parameters())[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("keep", [0.01, 0.5])
def test_a_compact_file_comes_back_exactly(tmp_path, keep):
    model, mask = trained(keep)
    file = mask.save_compact(tmp_path)
    fresh = adapted("bert", torch.float32)
    found = FisherMask.load_compact(fresh, tmp_path)
    assert found.hash == mask.hash
    wanted = values(model)
    assert all(torch.equal(p, wanted[name]) for name, p in fresh.named_parameters() if name in wanted)
    payload = 4 * mask.kept + min(4 * mask.kept, mask.total / 8 + len(mask.tensors)) + 4 * mask.head
    described = sum(len(name) for name in mask.tensors) * 8 + 120 * len(mask.tensors) + 4000
    assert file.stat().st_size < payload + described


def test_a_compact_file_refuses_another_start(tmp_path):
    _, mask = trained()
    mask.save_compact(tmp_path)
    other = adapted("bert", torch.float32, seed=1)
    before = values(other)
    with pytest.raises(PlanMismatchError, match="this model has other values in the rest"):
        FisherMask.load_compact(other, tmp_path)
    assert all(torch.equal(p, before[name]) for name, p in other.named_parameters() if name in before)
    with pytest.raises(PlanMismatchError, match="does not fit this model"):
        FisherMask.load_compact(adapted("bert", torch.float64), tmp_path)


def test_zeros_need_no_start(tmp_path):
    model = adapted("bert", torch.float32)
    mask = mask_of(model, "bert", keep=50, parameters=["*lora_B*"], zero="b_only")
    for name, p in model.named_parameters():
        p.requires_grad_(name in mask.tensors)
    train(model, mask.optimizer(torch.optim.AdamW, lr=1e-2), BATCHES, 2)
    mask.save_compact(tmp_path)
    other = adapted("bert", torch.float32)
    with torch.no_grad():
        for name, p in other.named_parameters():
            if name in mask.tensors:
                p.fill_(7.0)
    FisherMask.load_compact(other, tmp_path)
    wanted = values(model)
    assert all(torch.equal(p, wanted[name]) for name, p in other.named_parameters() if name in wanted)


def test_a_compact_file_is_not_written_when_it_could_not_be_read(tmp_path):
    model, mask = trained()
    name = next(n for n, t in mask.tensors.items() if not t.any())
    with torch.no_grad():
        mask.parameters(model)[name].add_(1.0)
    with pytest.raises(PlanMismatchError, match="has changed where the mask freezes it"):
        mask.save_compact(tmp_path)
    assert not list(tmp_path.iterdir())


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"there is no 'fisher_mask.safetensors'"):
        FisherMask.load(tmp_path)
    (tmp_path / "fisher_mask.safetensors").write_bytes(b"12345678901234567890")
    with pytest.raises(UserError, match="no file of a mask, or not whole"):
        FisherMask.load(tmp_path)
    _, mask = trained()
    whole = mask.save(tmp_path).read_bytes()
    (tmp_path / "fisher_mask.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="no file of a mask, or not whole"):
        FisherMask.load(tmp_path)
