"""How a pass over the batches behaves: dropout, checkpointing, bad examples, stopping, resuming, several processes."""

from __future__ import annotations

import functools
import os

import numpy as np
import pytest
import torch
import transformers as tf

import models
import tailora
from forked import free_port, start_two
from reference import gradients_slow as slow
from tailora.errors import ProfileError, UserError
from tailora.placement import select
from tailora.signals import partial
from tailora.signals.collect import Collecting, collect
from tailora.targets import find_targets

GRADIENTS = ("fisher", "gradient_norm", "gradient_spectrum", "fisher_lora_b", "activation_second_moment")


def targets_of(model, placement="all-linear"):
    return select(find_targets(model), placement)


def same_masks_fisher(model, targets, batch):
    """Fisher traces from one forward pass: the graph is kept and each example's own loss is sent back alone."""
    weights = [model.get_submodule(t.name).weight for t in targets]
    for weight in weights:
        weight.requires_grad_(True)
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    losses = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    traces = np.zeros(len(targets))
    for loss in losses:
        grads = torch.autograd.grad(loss, weights, retain_graph=True)
        traces += [float((g**2).sum()) / len(losses) for g in grads]
    return traces


def with_dropout(name="bert", p=0.3):
    model = models.build(name, dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = p
    return model


def test_with_dropout_on_the_same_masks_give_the_same_fisher():
    batch = models.batches("bert", sizes=(4,))[0]
    model = with_dropout()
    targets = targets_of(model, "attention")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        found = collect(model, targets, [batch], ("fisher",), Collecting(mode="train"))
    twin = with_dropout().train()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        wanted = same_masks_fisher(twin, targets, batch)
    np.testing.assert_allclose(found.signals["fisher"], wanted, rtol=1e-9)
    quiet = collect(model, targets, [batch], ("fisher",))
    assert not np.allclose(found.signals["fisher"], quiet.signals["fisher"], rtol=1e-2)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_gradient_checkpointing_changes_nothing(name, reentrant):
    model = models.build(name, dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    targets, batches = targets_of(model), models.batches(name)
    plain = collect(model, targets, batches, GRADIENTS)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = collect(model, targets, batches, GRADIENTS, Collecting(mode="train"))
    for signal in GRADIENTS:
        np.testing.assert_allclose(found.signals[signal], plain.signals[signal], rtol=1e-8, atol=1e-12)


def test_a_shared_layer_under_reentrant_checkpointing_is_summed_before_it_is_squared():
    from torch.utils.checkpoint import checkpoint

    class Shared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(4, 4)
            self.head = torch.nn.Linear(4, 3)
            self.recompute = False

        def forward(self, x, labels=None):
            hidden = x
            for _ in range(3):
                step = lambda h: self.inner(h).tanh() + h  # noqa: E731
                hidden = checkpoint(step, hidden, use_reentrant=True) if self.recompute else step(hidden)
            return type("Out", (), {"logits": self.head(hidden), "loss": None})()

    torch.manual_seed(0)
    model = Shared().double()
    targets = [t for t in find_targets(model) if t.name == "inner"]
    batches = [
        {"x": torch.randn(5, 4, dtype=torch.float64, requires_grad=True), "labels": torch.tensor([0, 1, 2, 0, 1])}
        for _ in range(2)
    ]
    plain = collect(model, targets, batches, ("fisher",))
    model.recompute = True
    found = collect(model, targets, batches, ("fisher",), Collecting(check=False))
    np.testing.assert_allclose(found.signals["fisher"], plain.signals["fisher"], rtol=1e-10)


def test_a_bad_example_is_named_or_skipped():
    model = models.build("bert", dtype=torch.float64)
    targets = targets_of(model)
    batches = models.batches("bert", sizes=(4, 3))
    alone = [{k: v[[0, 1, 3]] for k, v in batches[0].items()}, batches[1]]

    def poisoned(outputs, batch):
        losses = torch.nn.functional.cross_entropy(outputs.logits, batch["labels"], reduction="none")
        bad = (batch["input_ids"] == int(batches[0]["input_ids"][2, 0])).any(dim=1)
        bad &= (batch["input_ids"][:, : batches[0]["input_ids"].shape[1]] == batches[0]["input_ids"][2]).all(dim=1)
        return losses * torch.where(bad, float("nan"), 1.0)

    with pytest.raises(ProfileError, match="loss of example 2 in calibration batch number 0 is not finite"):
        collect(model, targets, batches, ("fisher",), Collecting(loss=poisoned))
    found = collect(model, targets, batches, GRADIENTS, Collecting(loss=poisoned, on_nonfinite="skip"))
    wanted = collect(model, targets, alone, GRADIENTS)
    assert found.skipped == ("example 2 of batch 0",)
    assert found.examples == 6
    for signal in ("fisher", "gradient_norm", "gradient_spectrum", "fisher_lora_b"):
        np.testing.assert_allclose(found.signals[signal], wanted.signals[signal], rtol=1e-9, atol=1e-13)
    assert tailora.profile(model, batches, loss=poisoned, on_nonfinite="skip").meta["skipped"] == list(found.skipped)


def test_a_gradient_that_overflows_is_named_after_the_first_batch_too():
    model = models.build("bert")
    targets = targets_of(model)
    batches = models.batches("bert", sizes=(4, 4, 4))

    def explode(outputs, batch):
        losses = torch.nn.functional.cross_entropy(outputs.logits, batch["labels"], reduction="none")
        bad = (batch["input_ids"] == batches[2]["input_ids"][1]).all(dim=1)
        # The value is finite and its derivative is not.
        sharp = torch.zeros_like(losses)
        sharp[bad] = (losses[bad] - losses[bad].detach()).sqrt()
        return losses + sharp

    with pytest.raises(ProfileError, match=r"for example 1 in calibration batch number 2 is not finite"):
        collect(model, targets, batches, ("fisher",), Collecting(loss=explode))


def test_rows_that_make_one_example_are_one_gradient():
    """A preference loss couples a chosen and a rejected row; their gradients belong to one example."""
    model = models.build("llama", dtype=torch.float64)
    targets = targets_of(model, "attention")
    batches = models.batches("llama", sizes=(4, 2))
    for batch in batches:
        batch["loss_reference"] = torch.linspace(-1, 1, len(batch["labels"]) // 2, dtype=torch.float64)

    def preference(outputs, batch):
        logp = -tailora_losses()(outputs, batch)
        return -torch.nn.functional.logsigmoid(logp[0::2] - logp[1::2] - batch["loss_reference"])

    found = collect(model, targets, batches, ("fisher",), Collecting(loss=preference))
    assert found.examples == 3
    total = np.zeros(len(targets))
    for batch in batches:
        for pair in range(len(batch["labels"]) // 2):
            rows = {
                k: v[2 * pair : 2 * pair + 2] if k != "loss_reference" else v[pair : pair + 1] for k, v in batch.items()
            }
            twin = models.build("llama", dtype=torch.float64)
            weights = [twin.get_submodule(t.name).weight for t in targets]
            value = preference(twin(**{k: v for k, v in rows.items() if k != "loss_reference"}), rows)
            total += [float((g**2).sum()) / 3 for g in torch.autograd.grad(value.sum(), weights)]
    np.testing.assert_allclose(found.signals["fisher"], total, rtol=1e-9)


def tailora_losses():
    from tailora.signals.losses import LOSSES

    return LOSSES["causal-lm"]


def test_the_pass_stops_once_the_ranking_is_stable():
    model = models.build("llama")
    many = models.batches("llama", sizes=(8,) * 12)
    found = tailora.profile(model, many, signals=("fisher",), until=0.5)
    whole = tailora.profile(model, many, signals=("fisher",))
    assert found.meta["batches"] < whole.meta["batches"] == 12
    assert found.meta["stability"] >= 0.5
    never = tailora.profile(model, many[:3], signals=("fisher",), until=1.0)
    assert never.meta["batches"] == 3


def test_regrouped_by_length_the_values_are_the_same():
    model = models.build("llama", dtype=torch.float64)
    batches = models.batches("llama", sizes=(5, 4, 3))
    plain = tailora.profile(model, batches, signals=GRADIENTS)
    sorted_ = tailora.profile(model, batches, signals=GRADIENTS, batch_size=4)
    assert sorted_.meta["batches"] == 3
    for signal in GRADIENTS:
        np.testing.assert_allclose(sorted_.signals[signal], plain.signals[signal], rtol=1e-9, atol=1e-13)


class Stop(Exception):
    pass


def test_a_pass_that_was_stopped_at_its_very_end_is_the_whole_one(tmp_path):
    model, batches, file = models.build("llama"), models.batches("llama"), tmp_path / "unfinished"
    whole = tailora.profile(model, batches)

    def stop(seen):
        if seen == whole.meta["examples"]:
            raise Stop

    with pytest.raises(Stop):
        tailora.profile(model, batches, resume=file, progress=stop)
    assert tailora.profile(model, batches, resume=file).hash == whole.hash


def test_an_interrupted_pass_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(partial, "EVERY_SECONDS", 0.0)
    model = models.build("llama", dtype=torch.float64)
    batches = models.batches("llama", sizes=(4, 3, 4, 2))
    whole = tailora.profile(model, batches, signals=GRADIENTS)
    file = tmp_path / "unfinished.safetensors"

    def interrupted(seen):
        if seen >= 11:
            raise Stop

    with pytest.raises(Stop):
        tailora.profile(model, batches, signals=GRADIENTS, resume=file, progress=interrupted)
    assert file.is_file()
    with pytest.raises(UserError, match="measured on other batches"):
        tailora.profile(model, models.batches("llama", sizes=(4, 3, 4, 2), seed=9), signals=GRADIENTS, resume=file)
    with pytest.raises(UserError, match="it measures other targets"):
        tailora.profile(model, batches, signals=GRADIENTS, resume=file, placement="attention")
    steps = []
    found = tailora.profile(model, batches, signals=GRADIENTS, resume=file, progress=steps.append)
    assert steps == [13], "three batches were kept: the third one was whole when the pass was stopped"
    assert not file.exists()
    assert found.meta["examples"] == whole.meta["examples"]
    assert found.meta["calibration_curve"] == whole.meta["calibration_curve"]
    for signal in GRADIENTS:
        np.testing.assert_array_equal(found.signals[signal], whole.signals[signal])
    assert found.hash == whole.hash


def test_what_is_kept_ends_with_a_whole_batch(tmp_path, monkeypatch):
    """A pass that is stopped in the middle of a batch has counted some targets of it and not others."""
    monkeypatch.setattr(partial, "EVERY_SECONDS", 0.0)
    model = models.build("llama", dtype=torch.float64)
    batches = models.batches("llama", sizes=(4, 3, 4, 2))
    whole = tailora.profile(model, batches, signals=GRADIENTS)
    file, calls = tmp_path / "unfinished.safetensors", []

    def fail(module, *_):
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt

    handle = model.model.layers[0].mlp.down_proj.register_full_backward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        tailora.profile(model, batches, signals=GRADIENTS, resume=file)
    handle.remove()
    found = tailora.profile(model, batches, signals=GRADIENTS, resume=file)
    assert found.hash == whole.hash


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("labels", {"labels": "model"}),
        ("mode", {"mode": "train"}),
        ("loss", {"loss": "causal-lm-sum"}),
        ("seed", {"seed": 1}),
        ("on_nonfinite", {"on_nonfinite": "skip"}),
        ("option", {"options": {"sketch": 2}}),
        ("model", {}),
    ],
)
def test_an_unfinished_pass_is_not_mixed_with_one_of_other_kind(tmp_path, name, how):
    model, batches, file = models.build("llama"), models.batches("llama"), tmp_path / "unfinished"

    def stop(seen):
        raise Stop

    with pytest.raises(Stop):
        tailora.profile(model, batches, resume=file, progress=stop)
    kept = file.read_bytes()
    if name == "model":
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.mul_(0.9)
    with pytest.raises(UserError, match=f"cannot be continued .it was measured with another {name}"):
        tailora.profile(model, batches, resume=file, **how)
    assert file.read_bytes() == kept


def test_a_stop_by_stability_goes_on_counting_where_it_was(tmp_path):
    model, batches = models.build("bert"), models.batches("bert", sizes=(4,) * 8)
    whole = tailora.profile(model, batches, until=0.9)
    assert 8 < whole.meta["examples"] < 32
    file = tmp_path / "unfinished"

    def stop(seen):
        if seen == whole.meta["examples"] - 4:
            raise Stop

    with pytest.raises(Stop):
        tailora.profile(model, batches, until=0.9, resume=file, progress=stop)
    assert tailora.profile(model, batches, until=0.9, resume=file).hash == whole.hash


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_whatever_happens_the_model_is_as_before(error):
    model = models.build("llama")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def fail(seen):
        raise error("stop")

    with pytest.raises(error):
        tailora.profile(model, models.batches("llama"), progress=fail)
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    model = models.build("bert", scale=1.0).to(dtype)
    exact = models.build("bert", scale=1.0).to(dtype).double()
    targets, batches = targets_of(model), models.batches("bert")
    found = collect(model, targets, batches, ("fisher", "gradient_norm"))
    wanted = collect(exact, targets, batches, ("fisher", "gradient_norm"))
    np.testing.assert_allclose(found.signals["fisher"], wanted.signals["fisher"], rtol=0.1)
    assert (found.signals["fisher"] > 0).all()


def test_a_vision_language_model_is_measured():
    vision = tf.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = tf.LlamaConfig(
        **models.COMMON, intermediate_size=24, num_key_value_heads=1, head_dim=8, max_position_embeddings=64
    )
    config = tf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=60, vision_feature_layer=-1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.LlavaForConditionalGeneration(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 59, (3, 12), generator=generator)
    ids[:, :4] = 60
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(3, 3, 8, 8, generator=generator, dtype=torch.float64),
        "labels": torch.where(ids == 60, -100, ids),
    }
    targets = targets_of(model)
    found = collect(model, targets, [batch], ("fisher",))
    reached = [t for t, value in zip(targets, found.signals["fisher"], strict=True) if value > 0]
    assert any(t.stack == "vision" or "vision" in t.name for t in reached)
    twin_targets = [t for t in reached if "vision" in t.name][:2] + [t for t in reached if "language" in t.name][:2]
    examples = slow.example_gradients(model, twin_targets, [batch], slow.causal_lm)
    mine = {t.name: v for t, v in zip(targets, found.signals["fisher"], strict=True)}
    np.testing.assert_allclose([mine[t.name] for t in twin_targets], slow.fisher_trace(examples), rtol=1e-9)


def share(rank, port, out, shard):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model = models.build("llama", dtype=torch.float64)
    targets = targets_of(model)
    if shard:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    batches = models.batches("llama", sizes=(4, 3, 2, 3))[rank::2]
    found = collect(model, targets, batches, GRADIENTS)
    np.savez(f"{out}/{rank}.npz", examples=found.examples, loss=found.mean_loss, **found.signals)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_measure_what_one_does(tmp_path, shard):
    work = functools.partial(share, port=free_port(), out=str(tmp_path), shard=shard)
    start_two(work)
    model = models.build("llama", dtype=torch.float64)
    one = collect(model, targets_of(model), models.batches("llama", sizes=(4, 3, 2, 3)), GRADIENTS)
    for rank in (0, 1):
        theirs = np.load(tmp_path / f"{rank}.npz")
        assert int(theirs["examples"]) == one.examples == 12
        assert float(theirs["loss"]) == pytest.approx(one.mean_loss, rel=1e-12)
        for signal in GRADIENTS:
            np.testing.assert_allclose(theirs[signal], one.signals[signal], rtol=1e-9, atol=1e-13)
