"""Signals beyond Fisher and spectrum against their slow forms and independent oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as tf

import models
import tailora
from reference import gradients_slow as slow
from reference import signals_slow
from tailora.errors import UserError
from tailora.placement import select
from tailora.signals.collect import Collecting, collect
from tailora.signals.examples import digests, halves_of
from tailora.signals.fresh_factors import fresh_a
from tailora.signals.sketches import TestMatrices, add_product, factors, sketch_pays, zeros
from tailora.signals.statistics.moments import gram, nystrom
from tailora.signals.weights import matrices
from tailora.targets import find_targets


def setting(name, placement="all-linear"):
    model = models.build(name, dtype=torch.float64)
    targets = select(find_targets(model), placement)
    twin = models.build(name, dtype=torch.float64)
    examples = slow.example_gradients(twin, targets, models.batches(name), slow.LOSSES[models.BUILDERS[name][1]])
    return model, targets, examples


@pytest.mark.parametrize("name", ["llama", "bert", "mixtral"])
def test_gradient_signals_equal_the_loop(name):
    model, targets, examples = setting(name)
    found = collect(
        model, targets, models.batches(name), ("gradient_norm", "sensitivity", "fisher_lora_b"), Collecting(seed=5)
    )
    for i, target in enumerate(targets):
        weights = list(matrices(model, target))
        assert found.signals["gradient_norm"][i] == pytest.approx(signals_slow.gradient_norm(examples, i), rel=1e-10)
        assert found.signals["sensitivity"][i] == pytest.approx(
            signals_slow.sensitivity(examples, i, weights), rel=1e-10
        )
        wanted = signals_slow.fisher_lora_b(examples, i, fresh_a(target, 5))
        assert found.signals["fisher_lora_b"][i] == pytest.approx(wanted, rel=1e-10)


def test_the_cross_spectrum_measures_one_half_on_the_other():
    model, targets, examples = setting("llama")
    halves = []
    for batch in models.batches("llama"):
        halves += halves_of(digests(batch, len(batch["labels"]), len(batch["labels"]))).tolist()
    assert 0 < sum(halves) < len(halves)
    one, two = ([e for e, half in zip(examples, halves, strict=True) if half == side] for side in (0, 1))
    found = collect(model, targets, models.batches("llama"), ("gradient_cross_spectrum",))
    for i, target in enumerate(targets):
        wanted = signals_slow.cross_spectrum(one, two, i)
        scale = max(abs(v) for v in wanted)
        np.testing.assert_allclose(
            found.signals["gradient_cross_spectrum"][i][: target.max_rank], wanted, rtol=1e-6, atol=1e-9 * scale
        )


def test_pure_noise_has_no_cross_spectrum_on_average():
    generator = torch.Generator().manual_seed(0)
    from tailora.signals.gradient_spectrum import _cross_measured

    values = []
    for _ in range(200):
        one, two = (torch.randn(1, 6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
        values.append(_cross_measured(one, two)[0].numpy())
    mean, error = np.mean(values, axis=0), np.std(values, axis=0) / np.sqrt(len(values))
    assert (np.abs(mean) < 4 * error).all()
    assert float(torch.linalg.svdvals(one[0])[0]) > 10 * np.abs(mean).max(), (
        "a plain spectrum would have called it signal"
    )


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "vit"])
def test_moments_equal_the_loop_over_real_positions(name):
    model = models.build(name, dtype=torch.float64)
    targets = select(find_targets(model), "all-linear")
    batches = models.batches(name)
    names = ("activation_second_moment", "activation_spectrum", "explained_variance", "output_gradient_second_moment")
    found = collect(model, targets, batches, names)
    chosen = [0, len(targets) // 2, len(targets) - 1]
    for i in chosen:
        target, inputs, gradients = targets[i], [], []
        module = model.get_submodule(target.name)

        def seen(_, args, output):
            inputs.append(args[0].detach())  # noqa: B023
            output.requires_grad_(True)
            output.register_hook(gradients.append)  # noqa: B023

        handle = module.register_forward_hook(seen)
        loss = slow.LOSSES[models.BUILDERS[name][1]]
        for batch in batches:
            for row in slow.rows_of(batch):
                loss(model(**row), row).backward()
        handle.remove()
        keep = []
        for batch in batches:
            for row in slow.rows_of(batch):
                decoder = target.stack == "decoder" and not (
                    target.cross_attention and target.role != "attention.query" and target.role != "attention.output"
                )
                if name == "vit":
                    keep.append(torch.ones(inputs[0].shape[1], dtype=torch.bool))
                elif decoder:
                    keep.append(row["labels"][0] != -100)
                else:
                    keep.append(row["attention_mask"][0].bool())
        vectors = [v for a, real in zip(inputs, keep, strict=True) for v in a[0][real]]
        flowing = [v for g, real in zip(gradients, keep, strict=True) for v in g[0][real]]
        moment = signals_slow.second_moment(vectors)
        assert found.signals["activation_second_moment"][i] == pytest.approx(float(moment.trace()), rel=1e-10)
        wanted = torch.linalg.eigvalsh(moment).flip(0).clamp(min=0).sqrt().numpy()
        spectrum = found.signals["activation_spectrum"][i][: len(wanted)]
        np.testing.assert_allclose(spectrum, wanted, rtol=1e-6, atol=1e-6 * wanted[0])
        ratios = signals_slow.explained_variance(vectors).numpy()
        np.testing.assert_allclose(found.signals["explained_variance"][i][: len(ratios)], ratios, atol=1e-9)
        mean = sum(float((v**2).sum()) for v in flowing) / len(flowing)
        assert found.signals["output_gradient_second_moment"][i] == pytest.approx(mean, rel=1e-10)


def test_a_forward_pass_is_enough_for_activations():
    model = models.build("bert")
    batches = [{k: v for k, v in b.items() if k != "labels"} for b in models.batches("bert")]
    found = tailora.profile(model, batches, signals=("explained_variance",))
    with_labels = tailora.profile(model, models.batches("bert"), signals=("explained_variance", "fisher"))
    np.testing.assert_allclose(
        found.signals["explained_variance"], with_labels.signals["explained_variance"], rtol=1e-4, atol=1e-6
    )
    assert found.meta["loss"] == ""


def test_explained_variance_equals_pefts_eva():
    """On one batch peft's incremental PCA is exact, so the ratios must agree."""
    from peft import EvaConfig, LoraConfig, get_peft_model
    from peft.tuners.lora import eva

    base = models.build("llama")
    batch = models.batches("llama", sizes=(6,))[0]
    config = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights="eva", eva_config=EvaConfig(rho=2.0, use_label_mask=False)
    )
    model = get_peft_model(models.build("llama"), config, low_cpu_mem_usage=True)
    hooks = {}
    original = eva.SVDHook.__call__

    def keep(self, module, inputs, output):
        hooks[self.name] = self
        return original(self, module, inputs, output)

    eva.SVDHook.__call__ = keep
    try:
        eva.get_eva_state_dict(model, [batch], show_progress_bar=False)
    finally:
        eva.SVDHook.__call__ = original
    found = tailora.profile(base, [batch], signals=("explained_variance",))
    rows = {target.name: row for target, row in zip(found.targets, found.signals["explained_variance"], strict=True)}
    compared = 0
    for name, hook in hooks.items():
        ratios = getattr(hook.svd, "explained_variance_ratio_", None)
        mine = rows.get(name.removeprefix("base_model.model."))
        if ratios is not None and mine is not None:
            np.testing.assert_allclose(mine[: len(ratios)], ratios.numpy(), rtol=2e-3, atol=1e-5)
            compared += 1
    assert compared >= 8


def test_weight_signals_need_no_data():
    model = models.build("gpt2", dtype=torch.float64)
    found = tailora.profile(model, signals=("weight_spectrum", "stable_rank", "condition_number", "weight_snr"))
    for i, target in enumerate(found.targets):
        weight = model.get_submodule(target.name).weight.detach()
        values = torch.linalg.svdvals(weight).numpy()
        np.testing.assert_allclose(found.signals["weight_spectrum"][i][: len(values)], values, rtol=1e-9)
        assert found.signals["stable_rank"][i] == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-9)
        assert found.signals["condition_number"][i] == pytest.approx(values[0] / values[-1], rel=1e-6)
        assert found.signals["weight_snr"][i] == pytest.approx(signals_slow.weight_snr(weight), rel=1e-6)
    assert found.meta["examples"] == 0


def test_condition_numbers_are_pefts():
    from peft.helpers import KappaTuneSelector

    model = models.build("llama")
    theirs = KappaTuneSelector(model)
    theirs._compute_kappas()
    found = tailora.profile(model, signals=("condition_number",))
    mine = dict(zip((t.name for t in found.targets), found.signals["condition_number"], strict=True))
    shared = mine.keys() & theirs._condition_numbers.keys()
    assert len(shared) >= 14
    for name in shared:
        assert mine[name] == pytest.approx(theirs._condition_numbers[name], rel=1e-3)


def test_planted_spikes_stand_out_of_the_noise():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 100, generator=generator, dtype=torch.float64) / 200**0.5
    u, v = (
        torch.nn.functional.normalize(torch.randn(n, 3, generator=generator, dtype=torch.float64), dim=0)
        for n in (200, 100)
    )
    from tailora.signals.weights import _snr

    plain = _snr(torch.linalg.svdvals(noise).numpy(), (200, 100))
    spiked = _snr(torch.linalg.svdvals(noise + 8 * u @ v.T).numpy(), (200, 100))
    top = float(torch.linalg.svdvals(noise + 8 * u @ v.T)[0])
    assert spiked * top > plain * float(torch.linalg.svdvals(noise)[0])


def planted(shape=(300, 200), decay=0.7, positions=500):
    generator = torch.Generator().manual_seed(1)
    out, inputs = shape
    g, a = (torch.randn(positions, n, generator=generator, dtype=torch.float64) for n in shape)
    strength = decay ** torch.arange(40, dtype=torch.float64)
    low = torch.randn(positions, 40, generator=generator, dtype=torch.float64) / positions**0.5
    right = torch.linalg.qr(torch.randn(inputs, 40, generator=generator, dtype=torch.float64))[0]
    left = torch.linalg.qr(torch.randn(out, 40, generator=generator, dtype=torch.float64))[0]
    return (low * strength) @ right.T + 1e-6 * a, low @ left.T + 1e-6 * g


def test_a_sketch_finds_the_leading_singular_values():
    a, g = planted()
    tests = TestMatrices.draw("x", (300, 200), 40, 0, a)
    sums = zeros(tests)
    for start in range(0, len(a), 100):
        add_product(sums, tests, a[start : start + 100], g[start : start + 100])
    u, s, v = factors(sums, tests)
    wanted = torch.linalg.svdvals(g.T @ a)
    torch.testing.assert_close(s[:12], wanted[:12], rtol=1e-3, atol=0)
    error = torch.linalg.matrix_norm((u * s) @ v.T - g.T @ a)
    assert error < 3 * wanted[20:].norm(), "no worse than a small multiple of what a rank-20 approximation leaves"


def test_a_sketched_profile_is_close_to_the_exact_one():
    config = tf.LlamaConfig(
        vocab_size=61, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=160, head_dim=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(config)
    exact, close = (
        tailora.profile(
            model, models.batches("llama"), signals=("gradient_spectrum", "gradient_norm"), options={"sketch": k}
        )
        for k in (0, 8)
    )
    sketched = [i for i, t in enumerate(exact.targets) if sketch_pays(t.shape, 8)]
    assert 0 < len(sketched) < len(exact.targets)
    for i, _ in enumerate(exact.targets):
        whole, approximate = exact.signals["gradient_spectrum"][i], close.signals["gradient_spectrum"][i]
        if i in sketched:
            assert (approximate[4:] == 0).all()
            ratio = approximate[:2] / whole[:2]  # this spectrum is flat and the sketch narrow: the worst case
            assert ((ratio > 0.8) & (ratio < 2.0)).all()
        else:
            np.testing.assert_array_equal(approximate, whole)


def test_nystrom_returns_the_leading_eigenvalues():
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(120, 120, generator=generator, dtype=torch.float64))[0]
    values = 0.6 ** torch.arange(120, dtype=torch.float64)
    moment = (q * values) @ q.T
    omega = torch.randn(120, 30, generator=generator, dtype=torch.float64)
    found = nystrom(moment @ omega, omega)
    torch.testing.assert_close(found[:10], values[:10], rtol=1e-3, atol=0)
    low = (q[:, :5] * values[:5]) @ q[:, :5].T
    torch.testing.assert_close(nystrom(low @ omega, omega)[:5], values[:5], rtol=1e-6, atol=0)
    assert nystrom(low @ omega, omega)[5:].abs().max() < 1e-8


def test_a_wide_moment_is_sketched_and_its_trace_is_exact():
    """Nystrom's eigenvalues never exceed the true ones; narrow moments are whole."""
    names = ("activation_spectrum", "activation_second_moment")
    exact, close, narrow = (
        tailora.profile(
            models.build("llama", dtype=torch.float64),
            models.batches("llama"),
            signals=names,
            options={"moment_sketch": k},
        )
        for k in (0, 2, 16)
    )
    sketched = [i for i, target in enumerate(exact.targets) if target.shape[1] > 16]
    assert 0 < len(sketched) < len(exact.targets)
    for i, _ in enumerate(exact.targets):
        whole, seen = exact.signals["activation_spectrum"][i], close.signals["activation_spectrum"][i]
        if i in sketched:
            assert (seen[1:] == 0).all()
            assert (seen[:1] <= whole[:1] * (1 + 1e-9)).all()
            assert (seen[:1] > 0.3 * whole[:1]).all()
        else:
            np.testing.assert_array_equal(seen, whole[: len(seen)])
    np.testing.assert_allclose(close.signals[names[1]], exact.signals[names[1]], rtol=1e-12)
    np.testing.assert_array_equal(narrow.signals[names[0]], exact.signals[names[0]])


def test_the_true_fisher_draws_labels_from_the_model():
    """On many draws the mean of the drawn Fisher is the expectation over all classes."""
    model = models.build("bert", dtype=torch.float64, scale=2.0)
    targets = select(find_targets(model), "attention")[:2]
    batch = models.batches("bert", sizes=(3,))[0]
    drawn = [
        collect(model, targets, [batch], ("fisher",), Collecting(labels="model", seed=seed)).signals["fisher"]
        for seed in range(150)
    ]
    expected = np.zeros(2)
    with torch.no_grad():
        probabilities = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.softmax(-1)
    for label in range(3):
        relabelled = {**batch, "labels": torch.full((3,), label)}
        for example, row in enumerate(slow.rows_of(relabelled)):
            one = slow.example_gradients(
                models.build("bert", dtype=torch.float64, scale=2.0), targets, [row], slow.classification
            )
            expected += float(probabilities[example, label]) * np.array(slow.fisher_trace(one)) / 3
    error = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    assert (np.abs(np.mean(drawn, axis=0) - expected) < 4 * error + 1e-12).all()
    assert tailora.profile(model, [batch], signals=("fisher",), labels="model").meta["labels"] == "model"


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_labels_of_the_model_do_not_depend_on_the_batch(name):
    model = models.build(name, dtype=torch.float64)
    targets = select(find_targets(model), "attention")
    whole = models.batches(name, sizes=(4,))
    rows = [{k: v[i : i + 1] for k, v in whole[0].items()} for i in range(4)]
    one, two = (collect(model, targets, b, ("fisher",), Collecting(labels="model")) for b in (whole, rows))
    np.testing.assert_allclose(one.signals["fisher"], two.signals["fisher"], rtol=1e-9)
    data = collect(model, targets, whole, ("fisher",))
    assert not np.allclose(one.signals["fisher"], data.signals["fisher"], rtol=1e-3)


def test_unknown_choices_get_a_sentence():
    model = models.build("llama")
    for change in ({"labels": "mine"}, {"mode": "test"}, {"on_nonfinite": "ignore"}, {"pooling": "max"}):
        with pytest.raises(UserError, match="is not known; use"):
            tailora.profile(model, models.batches("llama"), **change)
    with pytest.raises(UserError, match="until=2"):
        tailora.profile(model, models.batches("llama"), until=2)


@pytest.mark.parametrize("size", [5, 255, 256, 300, 520])
def test_a_symmetric_product_is_the_product(size):
    rows = torch.randn(70, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    found = gram(rows)
    torch.testing.assert_close(found, rows.T @ rows, rtol=1e-12, atol=1e-12)
    # Within a panel the product is the library's own, which is symmetric to the last bit on some processors only.
    torch.testing.assert_close(found, found.T, rtol=1e-14, atol=1e-13)
    if size > 256:
        assert torch.equal(found[256:, :256], found[:256, 256:].T)
