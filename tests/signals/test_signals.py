"""Every gradient signal against the batch-size-1 float64 loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import models
import tailora
from reference import gradients_slow as slow
from tailora.errors import ProfileError, UserError
from tailora.placement import select
from tailora.signals import SIGNALS
from tailora.signals.capture import Recorder
from tailora.signals.collect import Collecting, collect
from tailora.signals.fresh_factors import fresh_a
from tailora.targets import find_targets

ALL = ("fisher", "gradient_spectrum")
BASE_SIGNALS = tuple(entry.name for entry in SIGNALS if not entry.value.adapter)


def measure(name, dtype=torch.float64, **kw):
    model = models.build(name, dtype=dtype)
    targets = select(find_targets(model), "all-linear")
    found = collect(model, targets, models.batches(name), ALL, Collecting(**kw))
    twin = models.build(name, dtype=torch.float64)
    examples = slow.example_gradients(twin, targets, models.batches(name), slow.LOSSES[models.BUILDERS[name][1]])
    return found, targets, examples


@pytest.mark.parametrize("name", list(models.BUILDERS))
def test_fisher_and_spectrum_equal_the_loop(name):
    found, targets, examples = measure(name)
    assert found.examples == len(examples) == 7
    np.testing.assert_allclose(found.signals["fisher"], slow.fisher_trace(examples), rtol=1e-10)
    for i, target in enumerate(targets):
        wanted = slow.gradient_spectrum(examples, i)
        spectrum = found.signals["gradient_spectrum"][i]
        np.testing.assert_allclose(spectrum[: len(wanted)], wanted, rtol=1e-9, atol=1e-12 * max(wanted))
        assert (spectrum[target.max_rank :] == 0).all()


@pytest.mark.parametrize(("name", "reason"), [("opt", "fc1"), ("deberta", "_proj"), ("mixtral", "experts")])
def test_what_is_not_exact_in_a_batch_is_taken_one_by_one(name, reason):
    found, _, _ = measure(name)
    assert reason in found.one_by_one


def test_the_check_catches_a_layer_that_mixes_examples():
    class Mixing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(4, 4)
            self.head = torch.nn.Linear(4, 3)

        def forward(self, x, labels=None):
            # Time first: position t of every example lies in row t, and there are as many positions as examples.
            hidden = self.inner(x.transpose(0, 1)).transpose(0, 1).tanh().mean(1)
            return type("Out", (), {"logits": self.head(hidden), "loss": None})()

    torch.manual_seed(0)
    model = Mixing().double()
    targets = [t for t in find_targets(model) if t.name == "inner"]
    batch = {"x": torch.randn(3, 3, 4, dtype=torch.float64), "labels": torch.tensor([0, 1, 2])}
    found = collect(model, targets, [batch], ("fisher",))
    assert "inner" in found.one_by_one
    examples = slow.example_gradients(model, targets, [batch], slow.classification)
    np.testing.assert_allclose(found.signals["fisher"], slow.fisher_trace(examples), rtol=1e-10)
    unchecked = collect(model, targets, [batch], ("fisher",), Collecting(check=False))
    assert abs(unchecked.signals["fisher"][0] / found.signals["fisher"][0] - 1) > 1e-3, "the check must matter"


def test_examples_without_labels_do_not_dilute_the_mean():
    model = models.build("llama", dtype=torch.float64)
    targets = select(find_targets(model), "all-linear")
    batch = models.batches("llama", sizes=(4,))[0]
    alone = {k: v[:3] for k, v in batch.items()}
    batch["labels"][3] = -100
    one, two = (collect(model, targets, [b], ("fisher",)) for b in (batch, alone))
    assert one.examples == two.examples == 3
    np.testing.assert_allclose(one.signals["fisher"], two.signals["fisher"], rtol=1e-10)


def test_signals_do_not_depend_on_how_examples_are_batched():
    model = models.build("gpt2", dtype=torch.float64)
    targets = select(find_targets(model), "all-linear")
    whole = models.batches("gpt2", sizes=(6,))
    rows = [{k: v[i : i + 2] for k, v in whole[0].items()} for i in (0, 2, 4)]
    one, two = (collect(model, targets, b, ALL) for b in (whole, rows))
    for name in ALL:
        np.testing.assert_allclose(one.signals[name], two.signals[name], rtol=1e-9, atol=1e-14)


def test_batch_fisher_of_b_squares_the_batch_mean():
    model = models.build("llama", dtype=torch.float64)
    targets = select(find_targets(model), "all-linear")
    batches = models.batches("llama")
    found = collect(model, targets, batches, ("fisher_batch_b",), Collecting(seed=3))
    for i, target in enumerate(targets):
        a = fresh_a(target, 3)
        assert a.shape == (min(8, target.max_rank), target.shape[1])
        assert a.abs().max() <= 1 / target.shape[1] ** 0.5
        squares = []
        for batch in batches:
            twin = models.build("llama", dtype=torch.float64)
            rows = slow.example_gradients(twin, [target], [batch], slow.causal_lm)
            mean = sum(r[0][0] for r in rows) / len(rows)
            squares.append(float(((mean @ a.T) ** 2).mean()))
        assert found.signals["fisher_batch_b"][i] == pytest.approx(sum(squares) / len(squares), rel=1e-9)


def test_inputs_changed_in_place_are_copied():
    class InPlace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.in_place = True
            self.inner = torch.nn.Linear(4, 4)
            self.head = torch.nn.Linear(4, 3)

        def forward(self, x, labels=None):
            x = x * 1.5
            hidden = self.inner(x)
            if self.in_place:
                x += hidden.detach()
            else:
                x = x + hidden.detach()
            return type("Out", (), {"logits": self.head(hidden.tanh() + x), "loss": None})()

    torch.manual_seed(0)
    model = InPlace().double()
    targets = find_targets(model)
    batch = {"x": torch.randn(5, 4, dtype=torch.float64), "labels": torch.tensor([0, 1, 2, 0, 1])}
    found = collect(model, targets, [batch], ("fisher",))
    # Autograd itself cannot differentiate such a model by its weights; the same model without the shortcut is the twin.
    model.in_place = False
    examples = slow.example_gradients(model, targets, [batch], slow.classification)
    np.testing.assert_allclose(found.signals["fisher"], slow.fisher_trace(examples), rtol=1e-10)


@pytest.mark.parametrize("name", ["llama", "bert", "mixtral"])
@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_left_as_it_was(name, fail, monkeypatch):
    model = models.build(name)
    model.train()
    list(model.modules())[3].eval()
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 2 == 0)
        p.grad = torch.full_like(p, 0.5) if p.requires_grad else None
    before = (
        {n: (p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()},
        [m.training for m in model.modules()],
        torch.get_rng_state().clone(),
        getattr(model.config, "use_cache", None),
    )
    batches = models.batches(name)
    if fail:
        batches[1]["input_ids"] = torch.full_like(batches[1]["input_ids"], 10_000)
        with pytest.raises(IndexError):
            tailora.profile(model, batches)
    else:
        tailora.profile(model, batches)
    for n, p in model.named_parameters():
        value, flag = before[0][n]
        assert torch.equal(p, value), n
        assert p.requires_grad == flag, n
        assert (p.grad is None) == (not flag), n
        assert p.grad is None or bool((p.grad == 0.5).all()), n
    assert [m.training for m in model.modules()] == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert getattr(model.config, "use_cache", None) == before[3]
    assert not any(m._forward_hooks for m in model.modules())


def test_every_registered_signal_has_a_result_per_target():
    model = models.build("bert")
    targets = select(find_targets(model), "attention")
    found = collect(model, targets, models.batches("bert", sizes=(12, 12)), BASE_SIGNALS)
    for entry in (entry for entry in SIGNALS if not entry.value.adapter):
        values = found.signals[entry.name]
        assert values.shape[0] == len(targets)
        assert values.dtype == np.float64
        assert np.isfinite(values).all()  # these targets all lie in blocks
        assert entry.name == "gradient_cross_spectrum" or (values.reshape(len(targets), -1).sum(axis=1) > 0).all()
        assert entry.summary
        assert entry.value.unit


def test_a_gradient_that_is_not_finite_names_the_batch():
    model = models.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ProfileError, match="loss of example 0 in calibration batch number 0 is not finite"):
        tailora.profile(model, models.batches("llama"))


def test_a_loss_that_is_not_the_models_is_refused():
    model = models.build("t5")
    with pytest.raises(ProfileError, match="computes the loss"):
        tailora.profile(model, models.batches("t5"), loss="causal-lm")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda b: b.clear(), "no calibration batches"),
        (lambda b: [x.pop("labels") for x in b], "must hold 'labels'"),
    ],
)
def test_bad_batches_get_a_sentence(change, sentence):
    model, batches = models.build("llama"), models.batches("llama")
    change(batches)
    with pytest.raises(UserError, match=sentence):
        tailora.profile(model, batches)


def test_bad_signal_names_get_a_sentence():
    model = models.build("llama")
    with pytest.raises(UserError, match="did you mean 'fisher'"):
        tailora.profile(model, models.batches("llama"), signals=("fischer",))
    with pytest.raises(UserError, match="not one text"):
        tailora.profile(model, models.batches("llama"), signals="fisher")
    with pytest.raises(UserError, match="name at least one"):
        tailora.profile(model, models.batches("llama"), signals=())


def test_a_callable_loss_replaces_the_built_in_one():
    model = models.build("bert", dtype=torch.float64)

    def doubled(outputs, batch):
        return 2 * torch.nn.functional.cross_entropy(outputs.logits, batch["labels"], reduction="none")

    one = tailora.profile(model, models.batches("bert"), signals=("fisher",))
    two = tailora.profile(model, models.batches("bert"), signals=("fisher",), loss=doubled)
    np.testing.assert_allclose(two.signals["fisher"], 4 * one.signals["fisher"], rtol=1e-10)
    assert two.meta["loss"] == "doubled"


def test_hooks_do_not_fire_without_gradients():
    model = models.build("llama")
    targets = select(find_targets(model), "all-linear")
    recorder = Recorder(model, targets)
    recorder.start()
    try:
        with torch.no_grad():
            model(**models.batches("llama")[0])
        assert not any(recorder.calls)
    finally:
        recorder.stop()


def test_embeddings_are_measured_directly():
    model = models.build("llama", dtype=torch.float64)
    targets = select(find_targets(model), "role:embedding")
    found = collect(model, targets, models.batches("llama"), ("fisher",))
    twin = models.build("llama", dtype=torch.float64)
    examples = slow.example_gradients(twin, targets, models.batches("llama"), slow.causal_lm)
    np.testing.assert_allclose(found.signals["fisher"], slow.fisher_trace(examples), rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "loss", "twin"), [("llama", "causal-lm-sum", slow.causal_lm), ("t5", "token-sum", slow.unshifted)]
)
def test_the_sum_over_tokens_weighs_long_examples_more(name, loss, twin):
    def summed(outputs, row):
        labels = row["labels"][0, 1:] if name == "llama" else row["labels"][0]
        return twin(outputs, row) * int((labels != -100).sum())

    model = models.build(name, dtype=torch.float64)
    targets = select(find_targets(model), "all-linear")
    found = collect(model, targets, models.batches(name), ("fisher",), Collecting(loss=loss))
    examples = slow.example_gradients(model, targets, models.batches(name), summed)
    np.testing.assert_allclose(found.signals["fisher"], slow.fisher_trace(examples), rtol=1e-10)
    assert tailora.profile(model, models.batches(name), loss=loss).meta["loss_reduction"].startswith("sum")
