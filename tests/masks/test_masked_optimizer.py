"""Masked steps against dense optimizers written out by hand; what is not kept keeps its bits."""

from __future__ import annotations

import copy
import gc
import io

import pytest
import torch
from mask_cases import adapted, frozen_everywhere, mask_of, moved_everywhere, train, train_slow, values

import models
from reference import masks_slow as slow
from tailora.errors import TailoraError, UserError

BATCHES = models.batches("llama", sizes=(4, 3, 2, 3))
ADAMW = {"lr": 3e-3, "weight_decay": 0.1, "betas": (0.9, 0.95)}


def close(model, wanted, mask, tolerance):
    for name, p in mask.parameters(model).items():
        kept = mask.tensors[name]
        error = (p.detach()[kept] - wanted[name][kept]).double().norm() / max(float(wanted[name].norm()), 1e-8)
        assert error < tolerance, name


@pytest.mark.parametrize(
    ("dtype", "steps", "tolerance", "none"), [(torch.float64, 100, 1e-9, False), (torch.float32, 20, 1e-3, True)]
)
def test_many_steps_equal_dense_adamw(dtype, steps, tolerance, none):
    model = adapted(dtype=dtype)
    mask = mask_of(model)
    before = values(model)
    twin = slow.AdamW(3e-3, 0.1, (0.9, 0.95))
    wanted, norms = train_slow(model, mask.tensors, twin, BATCHES, steps, accumulation=4, clip=0.5)
    optimizer = mask.optimizer(torch.optim.AdamW, **ADAMW)
    found = train(model, optimizer, BATCHES, steps, accumulation=4, clip=0.5, none=none)
    assert frozen_everywhere(mask, before, model)
    assert moved_everywhere(mask, before, model)
    assert found == pytest.approx(norms, rel=tolerance)
    close(model, wanted, mask, tolerance)


def test_the_norm_is_that_of_kept_entries_and_the_head():
    model = adapted("bert")
    mask = mask_of(model, "bert")
    assert mask.head > 0
    batch = models.batches("bert")[0]
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(model(**batch).loss, [dict(model.named_parameters())[n] for n in names])
    kept = [g[mask.tensors[n]] if n in mask.tensors else g for n, g in zip(names, gradients, strict=True)]
    optimizer = mask.optimizer(torch.optim.AdamW, lr=1e-3)
    model(**batch).loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    assert float(norm) == pytest.approx(float(torch.cat([g.flatten() for g in kept]).norm()), rel=1e-9)
    del optimizer


def test_sgd_with_momentum():
    model = adapted()
    mask = mask_of(model)
    before = values(model)
    wanted, _ = train_slow(model, mask.tensors, slow.Momentum(1e-2, 0.1, 0.9), BATCHES, 30)
    optimizer = mask.optimizer(torch.optim.SGD, lr=1e-2, weight_decay=0.1, momentum=0.9)
    train(model, optimizer, BATCHES, 30)
    assert frozen_everywhere(mask, before, model)
    close(model, wanted, mask, 1e-9)


@pytest.mark.parametrize("kernel", [{"fused": True}, {"foreach": True}, {"foreach": False}, {"amsgrad": True}])
def test_other_kernels(kernel):
    model = adapted(dtype=torch.float32)
    mask = mask_of(model)
    other, before = copy.deepcopy(model), values(model)
    train(model, mask.optimizer(torch.optim.AdamW, **ADAMW, **kernel), BATCHES, 20, clip=1.0)
    assert frozen_everywhere(mask, before, model)
    plain = {"foreach": False, "amsgrad": bool(kernel.get("amsgrad"))}
    train(other, mask.optimizer(torch.optim.AdamW, model=other, **ADAMW, **plain), BATCHES, 20, clip=1.0)
    wanted = {name: p.detach() for name, p in other.named_parameters()}
    close(model, wanted, mask, 1e-3)


def test_adafactor_keeps_what_is_frozen():
    model = adapted(dtype=torch.float32)
    mask = mask_of(model)
    before = values(model)
    optimizer = mask.optimizer(torch.optim.Adafactor, lr=1e-2, weight_decay=0.1)
    train(model, optimizer, BATCHES, 5)
    assert frozen_everywhere(mask, before, model)
    assert moved_everywhere(mask, before, model)


def test_an_optimizer_that_calls_its_closure_often():
    model = adapted()
    mask = mask_of(model)
    before, losses = values(model), []
    optimizer = mask.optimizer(torch.optim.LBFGS, lr=0.5, max_iter=5)

    def closure():
        optimizer.zero_grad()
        loss = model(**BATCHES[0]).loss
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    first = optimizer.step(closure)
    assert float(first.detach()) == losses[0]
    assert losses[-1] < losses[0] - 1e-3
    assert frozen_everywhere(mask, before, model)


def test_state_is_as_long_as_the_mask():
    model = adapted(dtype=torch.float32)
    mask = mask_of(model, keep=0.1)
    optimizer = mask.optimizer(torch.optim.AdamW, lr=1e-3)
    train(model, optimizer, BATCHES, 1)
    sizes = optimizer.sizes()
    assert sizes["state"] == 8 * mask.kept + 4
    assert sizes["bookkeeping"] == 4 * mask.kept
    state = optimizer.state_dict()["state"]
    assert [len(entry["exp_avg"]) for entry in state.values()] == [mask.kept]


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD])
def test_resumed_equals_uninterrupted(cls):
    options = ADAMW if cls is torch.optim.AdamW else {"lr": 1e-2, "momentum": 0.9}
    model = adapted("bert")
    mask = mask_of(model, "bert")
    batches = models.batches("bert", sizes=(4, 3, 2, 3))

    def parts(of):
        optimizer = mask.optimizer(cls, model=of, head={"lr": 1e-3}, **options)
        return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 12)

    whole = copy.deepcopy(model)
    optimizer, schedule = parts(whole)
    train(whole, optimizer, batches, 12, clip=1.0, schedule=schedule)
    optimizer, schedule = parts(model)
    train(model, optimizer, batches, 4, clip=1.0, schedule=schedule)
    stream = io.BytesIO()
    torch.save([optimizer.state_dict(), schedule.state_dict(), model.state_dict()], stream)
    stream.seek(0)
    states = torch.load(stream, weights_only=True)
    fresh = copy.deepcopy(model)
    fresh.load_state_dict(states[2])
    optimizer, schedule = parts(fresh)
    optimizer.load_state_dict(states[0])
    schedule.load_state_dict(states[1])
    train(fresh, optimizer, batches, 8, clip=1.0, schedule=schedule)
    for name, p in whole.named_parameters():
        assert torch.equal(p, dict(fresh.named_parameters())[name]), name


def test_a_state_of_another_mask_is_refused():
    model = adapted()
    one, other = mask_of(model), mask_of(model, selection="random")
    state = one.optimizer(torch.optim.AdamW, lr=1e-3).state_dict()
    with pytest.raises(UserError, match="of another mask"):
        other.optimizer(torch.optim.AdamW, lr=1e-3).load_state_dict(state)
    dense = torch.optim.AdamW(model.parameters(), lr=1e-3).state_dict()
    with pytest.raises(UserError, match="without a mask"):
        one.optimizer(torch.optim.AdamW, lr=1e-3).load_state_dict(dense)


def test_the_gradient_scaler_sees_kept_entries():
    model, plain = adapted(dtype=torch.float32), adapted(dtype=torch.float32)
    mask = mask_of(model)
    before = values(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7, growth_interval=1000)
    optimizer = mask.optimizer(torch.optim.AdamW, **ADAMW)
    for step in range(6):
        scaler.scale(model(**BATCHES[step % 4]).loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    train(plain, mask.optimizer(torch.optim.AdamW, model=plain, **ADAMW), BATCHES, 6, clip=0.5)
    assert frozen_everywhere(mask, before, model)
    close(model, {name: p.detach() for name, p in plain.named_parameters()}, mask, 1e-4)
    # An overflow skips the step, and what is not finite is gone afterwards.
    held = values(model)
    (model(**BATCHES[0]).loss * float("inf")).backward()
    scaler.scale(model(**BATCHES[0]).loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    assert all(torch.equal(p, held[name]) for name, p in model.named_parameters() if p.requires_grad)
    train(model, optimizer, BATCHES, 1)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_bfloat16_autocast():
    model = adapted(dtype=torch.float32)
    mask = mask_of(model)
    before = values(model)
    optimizer = mask.optimizer(torch.optim.AdamW, **ADAMW)
    for step in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**BATCHES[step % 4]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert frozen_everywhere(mask, before, model)
    assert moved_everywhere(mask, before, model)


def test_groups_have_options_of_their_own():
    model = adapted("bert")
    mask = mask_of(model, "bert", keep=0.9)
    before = values(model)
    optimizer = mask.optimizer(
        torch.optim.SGD, lr=1e-2, head={"lr": 0.0}, groups={"*lora_A*": {"lr": 0.0}, "*layer.0*": {"lr": 1e-1}}
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 1e-1, 1e-2, 0.0]
    listed = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in listed} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(listed) == len(set(map(id, listed)))
    for group in optimizer.param_groups:
        group["lr"] *= 2
    # After one step B is no longer zero, so A has a gradient too.
    train(model, optimizer, models.batches("bert"), 2)
    for name, p in model.named_parameters():
        if p.requires_grad:
            still = "lora_A" in name or name not in mask.tensors
            assert torch.equal(p.detach(), before[name]) == still, name
    with pytest.raises(UserError, match="matches no parameter"):
        mask.optimizer(torch.optim.SGD, lr=1.0, groups={"*nothing*": {}})


def test_a_group_added_later_trains_in_full():
    model = adapted()
    mask = mask_of(model)
    optimizer = mask.optimizer(torch.optim.AdamW, lr=1e-2)
    extra = torch.nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    extra.sum().backward()
    model(**BATCHES[0]).loss.backward()
    optimizer.step()
    assert torch.allclose(extra.detach(), torch.full((3,), 1 - 0.5 * 0.01 - 0.5))


def test_it_is_an_ordinary_optimizer_to_schedulers_and_accelerate():
    from accelerate import Accelerator

    model = adapted(dtype=torch.float32)
    mask = mask_of(model)
    before = values(model)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = mask.optimizer(torch.optim.AdamW, **ADAMW)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=20)
    prepared, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    for step in range(6):
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(**BATCHES[step % 4]).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(prepared.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    assert frozen_everywhere(mask, before, model)
    assert moved_everywhere(mask, before, model)


def test_parameters_that_move_are_followed():
    model = adapted(dtype=torch.float32)
    mask = mask_of(model)
    optimizer = mask.optimizer(torch.optim.AdamW, **ADAMW)
    train(model, optimizer, BATCHES, 2)
    for p in model.parameters():
        p.data = p.data.clone()
    before = values(model)
    train(model, optimizer, BATCHES, 3)
    assert frozen_everywhere(mask, before, model)
    assert moved_everywhere(mask, before, model)
    # What somebody loads between steps is what the next step starts from.
    with torch.no_grad():
        for p in mask.parameters(model).values():
            p.fill_(0.25)
    train(model, optimizer, BATCHES, 1)
    for name, p in mask.parameters(model).items():
        assert (p.detach()[~mask.tensors[name]] == 0.25).all()
        assert ((p.detach()[mask.tensors[name]] - 0.25).abs() < 0.02).all()


def test_a_model_that_changes_its_dtype_is_followed():
    model = adapted(dtype=torch.float32)
    mask = mask_of(model)
    optimizer = mask.optimizer(torch.optim.AdamW, **ADAMW, fused=True)
    train(model, optimizer, BATCHES, 2)
    model.double()
    before = values(model)
    train(model, optimizer, BATCHES, 2, clip=1.0)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert {entry["exp_avg"].dtype for entry in optimizer.state.values()} == {torch.float64}
    assert [int(entry["step"]) for entry in optimizer.state.values()] == [4]
    assert frozen_everywhere(mask, before, model)
    assert moved_everywhere(mask, before, model)


def test_the_model_can_still_be_copied_and_pickled():
    model = adapted()
    mask = mask_of(model)
    optimizer = mask.optimizer(torch.optim.AdamW, lr=1e-3)
    model(**BATCHES[0]).loss.backward()
    clone = copy.deepcopy(model)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    optimizer.step()
    for other in (clone, loaded):
        fresh = adapted()
        assert all(torch.equal(p, q) for p, q in zip(other.parameters(), fresh.parameters(), strict=True))
        # The copy has no hooks: it trains in full.
        other.zero_grad()
        other(**BATCHES[0]).loss.backward()
        assert any(p.grad[~mask.tensors[n]].any() for n, p in mask.parameters(other).items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_either_kind(reentrant):
    norms = []
    for checkpointed in (False, True):
        model = adapted().train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        mask = mask_of(model)
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        optimizer = mask.optimizer(torch.optim.AdamW, lr=1e-3)
        norms.append(train(model, optimizer, BATCHES, 3, accumulation=2, clip=0.1))
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


def test_hooks_go_with_the_optimizer():
    model = adapted()
    mask = mask_of(model)
    optimizer = mask.optimizer(torch.optim.AdamW, lr=1e-3)
    name = next(n for n, t in mask.tensors.items() if "lora_B" in n and 0 < int(t.sum()) < t.numel())
    p = mask.parameters(model)[name]
    model(**BATCHES[0]).loss.backward()
    assert not p.grad[~mask.tensors[name]].any()
    model.zero_grad()
    del optimizer
    gc.collect()
    model(**BATCHES[0]).loss.backward()
    assert p.grad[~mask.tensors[name]].any()


def test_a_newer_optimizer_takes_over():
    model = adapted()
    mask = mask_of(model)
    before = values(model)
    old = mask.optimizer(torch.optim.AdamW, lr=1e-3)
    new = mask.optimizer(torch.optim.AdamW, lr=1e-3)
    train(model, new, BATCHES, 2)
    assert moved_everywhere(mask, before, model)
    with pytest.raises(TailoraError, match="newer masked optimizer"):
        old.step()


def test_a_backward_pass_that_fails_leaves_nothing_behind():
    model = adapted()
    mask = mask_of(model)
    before = values(model)
    optimizer = mask.optimizer(torch.optim.AdamW, lr=1e-3)
    embeddings = model.get_input_embeddings()

    def fail(gradient):
        raise ValueError("on purpose")

    handle = embeddings.register_forward_hook(lambda module, args, out: out.requires_grad_())
    second = embeddings.register_forward_hook(lambda module, args, out: out.register_hook(fail) and None)
    with pytest.raises(ValueError, match="on purpose"):
        model(**BATCHES[0]).loss.backward()
    handle.remove()
    second.remove()
    optimizer.zero_grad()
    model(**BATCHES[0]).loss.backward()
    for name, p in mask.parameters(model).items():
        assert not p.grad[~mask.tensors[name]].any()
    optimizer.step()
    assert frozen_everywhere(mask, before, model)


def test_nothing_kept_in_a_group_is_fine():
    model = adapted()
    mask = mask_of(model, zero="b_only", keep=5)
    before = values(model)
    optimizer = mask.optimizer(torch.optim.AdamW, lr=1e-3, groups={"*lora_A*": {"lr": 1.0}})
    train(model, optimizer, BATCHES, 3, clip=1.0)
    assert frozen_everywhere(mask, before, model)
    assert moved_everywhere(mask, before, model)


def test_buffers_split_by_dtype_and_size(monkeypatch):
    from tailora.masks import flat

    monkeypatch.setattr(flat, "LIMIT", 200)
    model = adapted(dtype=torch.float32)
    mask = mask_of(model)
    for name, p in model.named_parameters():
        if "layers.1" in name and p.requires_grad:
            p.data = p.data.to(torch.bfloat16)
    before = values(model)
    optimizer = mask.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    held = [buffer for group in optimizer._flats for buffer in group]
    assert len(held) > 4
    assert {buffer.values.dtype for buffer in held} == {torch.float32, torch.bfloat16}
    assert all(len(buffer.values) <= 200 for buffer in held)
    with torch.autocast("cpu", torch.bfloat16):
        train(model, optimizer, BATCHES, 3, clip=1.0)
    assert frozen_everywhere(mask, before, model)
    now = mask.parameters(model)
    assert any(not torch.equal(now[n].detach(), before[n]) for n in now if now[n].dtype == torch.bfloat16)
    assert optimizer.sizes()["bookkeeping"] == 4 * mask.kept


def test_parameters_spread_over_dtypes_later_are_refused():
    model = adapted(dtype=torch.float32)
    mask = mask_of(model)
    optimizer = mask.optimizer(torch.optim.AdamW, lr=1e-2)
    some = next(iter(mask.parameters(model).values()))
    some.data = some.data.double()
    with pytest.raises(TailoraError, match="make it after placing the model"):
        optimizer.step()


def test_a_parameter_without_gradient_counts_as_zero():
    model = adapted(dtype=torch.float32)
    mask = mask_of(model)
    before = values(model)
    optimizer = mask.optimizer(torch.optim.SGD, lr=1.0)
    model(**BATCHES[0]).loss.backward()
    name = next(n for n, t in mask.tensors.items() if "lora_B" in n and t.any())
    mask.parameters(model)[name].grad = None
    optimizer.step()
    assert torch.equal(mask.parameters(model)[name].detach(), before[name])
    optimizer.zero_grad()
    held = values(model)
    optimizer.step()
    assert all(torch.equal(p, held[n]) for n, p in model.named_parameters() if p.requires_grad)
