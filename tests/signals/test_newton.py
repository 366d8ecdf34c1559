"""The Newton step over all targets against matrices that are written out, and what it must leave alone."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as tf

import models
import tailora
from reference.newton import Dense
from tailora.errors import ProfileError, UserError
from tailora.lab.families import FAMILIES
from tailora.lab.losses import lab_loss
from tailora.lab.problems import build as build_problem
from tailora.lab.score import matches
from tailora.placement import select
from tailora.signals.losses import LOSSES
from tailora.signals.newton import passes
from tailora.signals.newton.conjugate import minimise
from tailora.signals.newton.factors import Moments
from tailora.signals.newton.logits import LogitsLoss, draw
from tailora.signals.newton.objective import Objective
from tailora.signals.newton.step import held_out_places
from tailora.targets import find_targets

FOUR = ("llama", "gpt2", "bert", "t5")
SIGNAL = ("newton_spectrum",)
BOTH = ("newton_spectrum", "newton_agreement")
WHOLE = {"newton_held_out": 0}


@pytest.fixture
def wide(monkeypatch):
    """Let no layer round to float32: forward and reverse mode would then differ by what it rounds."""
    to, single = torch.Tensor.to, torch.Tensor.float

    def keep(tensor, *args, **kw):
        if tensor.dtype == torch.float64 and args and args[0] is torch.float32:
            return tensor
        return to(tensor, *args, **kw)

    monkeypatch.setattr(torch.Tensor, "to", keep)
    monkeypatch.setattr(torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else single(t))


def problem(name):
    """A tiny model, a few of its targets from front to back, and two batches."""
    # Of the usual size the weights leave p away from 0 and 1, where a draw says little.
    model = models.build(name, dtype=torch.float64, scale=2.0)
    found = [t for t in select(find_targets(model), "all-linear") if t.kind in ("linear", "conv1d")]
    if name == "t5":
        chosen = [t for t in found if t.name.endswith(("0.SelfAttention.q", "1.EncDecAttention.k", "wi"))][:5]
    else:
        chosen = found[:: 2 if name == "gpt2" else 3][:4]
    return model, chosen, models.batches(name, sizes=(2, 1), length=6), models.BUILDERS[name][1]


def quiet(model):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


@pytest.mark.parametrize("name", FOUR)
def test_everything_equals_the_matrices_written_out(name, wide):
    model, targets, batches, kind = problem(name)
    dense = Dense(model, targets, batches, kind, seed=3)
    objective = Objective(quiet(model), targets, batches, "auto", seed=3)
    with torch.enable_grad():
        moments = Moments(targets, objective.weights)
        gradient = objective.begin(lambda: None, moments)
        assert objective.examples == dense.n == 3
        assert objective.loss_name == kind
        flat = torch.cat([matrix.reshape(-1) for matrix in gradient])
        torch.testing.assert_close(flat, dense.gradient, rtol=1e-8, atol=1e-12)
        vector = torch.randn(len(flat), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        curved = objective.product(dense.split(vector), lambda: None)
    wanted = dense.matrix @ vector
    found = torch.cat([matrix.reshape(-1) for matrix in curved])
    assert float((found - wanted).norm()) < 1e-8 * float(wanted.norm())
    for index in range(len(targets)):
        a = moments.inputs[index] / moments.positions[index]
        torch.testing.assert_close(a, dense.a[index], rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(moments.outputs[index] / dense.n, dense.s[index], rtol=1e-8, atol=1e-12)
    measured = tailora.profile(
        model, batches, SIGNAL, targets=targets, seed=3, options={"newton_iterations": 5, **WHOLE}
    )
    step = dense.conjugate_gradients(5)
    assert measured.meta["newton"]["iterations"] == 5
    assert measured.meta["newton"]["predicted_decrease"] == pytest.approx(-dense.value(step), rel=1e-8)
    for values, target, expected in zip(measured.signals[SIGNAL[0]], targets, dense.spectra(step), strict=True):
        k = target.max_rank
        np.testing.assert_allclose(values[:k], expected, rtol=1e-8, atol=1e-8 * expected[0])
        assert (values[k:] == 0).all()


def cross_entropies(outputs, batch):
    logits = outputs.logits.flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, batch["labels"].flatten(), reduction="none")
    return (losses.reshape(batch["labels"].shape) * batch["loss_weight"]).sum(dim=1)


def yes_or_no(outputs, batch):
    logits = outputs.logits
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"], reduction="none").sum(dim=-1)


DRAWN = {
    "classification": (LOSSES["classification"], (4,), torch.tensor([2])),
    "token": (LOSSES["token"], (3, 4), torch.tensor([[1, -100, 3]])),
    "causal-lm": (LOSSES["causal-lm"], (3, 4), torch.tensor([[1, 0, 3]])),
    "weighted": (cross_entropies, (3, 4), torch.tensor([[1, 0, 3]])),
    "regression": (LOSSES["regression"], (1,), torch.tensor([0.5])),
    "regressions": (LOSSES["regression"], (2,), torch.tensor([[0.5, 1.0]])),
    "yes-or-no": (yes_or_no, (3,), torch.tensor([[0.0, 1.0, 1.0]])),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_draws_at_the_logits_have_the_losses_curvature_as_covariance(kind):
    function, shape, labels = DRAWN[kind]
    generator, copies = torch.Generator().manual_seed(0), 20_000
    one = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    labels = labels.double() if labels.is_floating_point() else labels
    batch = {"labels": labels, "loss_weight": torch.tensor([[0.5, 0.0, 2.0]])}
    wanted = torch.autograd.functional.hessian(
        lambda logits: function(SimpleNamespace(logits=logits[None]), batch).sum(), one
    ).reshape(one.numel(), one.numel())
    many = {"labels": labels.repeat(copies, *[1] * (labels.ndim - 1)), "loss_weight": batch["loss_weight"]}
    here = LogitsLoss(kind, function, one.expand(copies, *shape), many)
    drawn = draw(kind, function, here, many, generator).reshape(copies, -1)
    found = drawn.T @ drawn / copies
    assert float((found - wanted).norm()) < 0.03 * float(wanted.norm())


def test_enough_iterations_reach_the_minimum(wide):
    model, targets, batches, kind = problem("bert")
    dense = Dense(model, targets, batches, kind)
    exact = dense.solution()
    found = tailora.profile(model, batches, SIGNAL, targets=targets, options={"newton_iterations": 60, **WHOLE})
    decreases = found.meta["newton"]["decrease_by_iteration"]
    assert decreases[-1] == pytest.approx(-dense.value(exact), rel=1e-5)
    assert all(later > earlier for earlier, later in itertools.pairwise(decreases))
    assert decreases[0] < 0.99 * decreases[-1]


def test_conjugate_gradients_end_where_there_is_no_curvature():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    h, g = root @ root.T, torch.randn(6, 1, generator=generator, dtype=torch.float64)
    whole = minimise(lambda v: [h @ v[0]], [g], lambda v: [v[0].clone()], 50)
    torch.testing.assert_close(whole.step[0], -torch.linalg.solve(h, g), rtol=1e-6, atol=1e-8)
    assert whole.stopped == "nothing left to solve"
    none = minimise(lambda v: [-v[0]], [g], lambda v: [v[0].clone()], 5)
    assert (none.stopped, none.decreases) == ("no positive curvature", ())
    assert not none.step[0].any()
    with pytest.raises(ProfileError, match="iteration 1 of the Newton step is not finite"):
        minimise(lambda v: [v[0] * float("nan")], [g], lambda v: [v[0].clone()], 5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "mixtral", "albert", "opt", "deberta", "vit"])
def test_every_architecture_has_a_step_that_lowers_the_model(name):
    model = models.build(name)
    found = tailora.profile(model, models.batches(name), SIGNAL, options={"newton_iterations": 3, **WHOLE})
    values, notes = found.signals[SIGNAL[0]], found.meta["newton"]
    experts = [target.kind == "parameter" for target in found.targets]
    assert np.isfinite(values).all()
    assert (values.any(axis=1) == ~np.array(experts)).all()
    assert (np.diff(values, axis=1) <= 1e-12).all()
    assert 0 < notes["decrease_by_iteration"][0] < notes["predicted_decrease"]
    assert ("experts" in notes["left_as_they_are"]) == any(experts)


def test_the_forecast_holds_where_the_model_is_quadratic(wide):
    """Of one linear layer under squared error, the Gauss-Newton model is the loss itself."""

    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, x, labels=None):
            return type("Out", (), {"logits": self.layer(x), "loss": None})()

    generator = torch.Generator().manual_seed(0)
    model = Line().double()
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    batch = {"x": x, "labels": x @ torch.randn(4, generator=generator, dtype=torch.float64) + 0.5}
    found = tailora.profile(model, [batch], SIGNAL, targets=find_targets(model))
    # What least squares leave, with the bias as it is.
    target = batch["labels"] - model.layer.bias.detach()
    left = torch.linalg.lstsq(x, target[:, None]).solution
    least = float(((x @ left)[:, 0] - target).square().mean())
    assert found.meta["loss"] == "regression"
    assert found.meta["mean_loss"] - found.meta["newton"]["predicted_decrease"] == pytest.approx(least, rel=1e-3)


def test_a_callable_is_the_named_loss(wide):
    model, targets, batches, _ = problem("bert")

    def doubled(outputs, batch):
        return 2 * torch.nn.functional.cross_entropy(outputs.logits, batch["labels"], reduction="none")

    how = {"targets": targets, "options": {"newton_iterations": 4}}
    one = tailora.profile(model, batches, SIGNAL, **how)
    two = tailora.profile(model, batches, SIGNAL, loss=doubled, **how)
    # The step stays and the curvature doubles.
    np.testing.assert_allclose(two.signals[SIGNAL[0]], 2**0.5 * one.signals[SIGNAL[0]], rtol=1e-6, atol=1e-9)
    assert two.meta["loss"] == "doubled"
    assert two.meta["newton"]["predicted_decrease"] == pytest.approx(2 * one.meta["newton"]["predicted_decrease"])


def test_masked_language_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tf.BertForMaskedLM(tf.BertConfig(**models.COMMON, intermediate_size=24, max_position_embeddings=64))
    batches = models.batches("llama")
    for batch in batches:
        batch["labels"][:, ::2] = -100
    found = tailora.profile(model, batches, SIGNAL, options={"newton_iterations": 4})
    assert (found.meta["loss"], found.meta["newton"]["iterations"]) == ("token", 4)
    assert (found.signals[SIGNAL[0]].max(axis=1) > 0).all()


def test_beside_the_ordinary_pass_and_in_other_batches():
    model, batches, few = models.build("gpt2"), models.batches("gpt2"), {"options": {"newton_iterations": 3}}
    plain = tailora.profile(model, batches, ("gradient_spectrum",))
    alone = tailora.profile(model, batches, SIGNAL, **few)
    seen = []
    both = tailora.profile(model, iter(batches), ("gradient_spectrum", *SIGNAL), progress=seen.append, **few)
    np.testing.assert_array_equal(both.signals[SIGNAL[0]], alone.signals[SIGNAL[0]])
    np.testing.assert_array_equal(both.signals["gradient_spectrum"], plain.signals["gradient_spectrum"])
    assert seen[-1] == both.meta["examples"] == alone.meta["examples"] == 7
    assert both.meta["data"] == alone.meta["data"] == plain.meta["data"]
    assert alone.meta["mean_loss"] == pytest.approx(plain.meta["mean_loss"], rel=1e-5)
    assert alone.meta["newton"]["passes"] == passes(3) == pytest.approx(6)
    assert "newton" not in plain.meta
    other = tailora.profile(model, batches, SIGNAL, batch_size=2, **few)
    assert other.meta["mean_loss"] == pytest.approx(alone.meta["mean_loss"], rel=1e-5)
    assert other.meta["newton"]["decrease_by_iteration"][0] > 0
    assert tailora.profile(model, batches, SIGNAL, **few).hash == alone.hash


@pytest.mark.parametrize("fail", ["", "input", "nonfinite"])
def test_the_model_is_left_as_it_was(fail):
    model, batches = models.build("gpt2"), models.batches("gpt2")
    model.train()
    list(model.modules())[3].eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
        parameter.grad = torch.full_like(parameter, 0.5) if parameter.requires_grad else None
    if fail == "nonfinite":
        with torch.no_grad():
            model.transformer.h[1].mlp.c_proj.weight[0, 0] = float("nan")
    before = {n: (id(p), p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()}
    modes, state = [m.training for m in model.modules()], torch.get_rng_state().clone()
    if fail == "input":
        batches[1]["input_ids"] = torch.full_like(batches[1]["input_ids"], 10_000)
        with pytest.raises(IndexError):
            tailora.profile(model, batches, SIGNAL)
    elif fail:
        with pytest.raises(ProfileError, match="loss of example 0 in calibration batch number 0 is not finite"):
            tailora.profile(model, batches, SIGNAL)
    else:
        tailora.profile(model, batches, SIGNAL, options={"newton_iterations": 2})
    for name, parameter in model.named_parameters():
        place, value, flag = before[name]
        assert id(parameter) == place
        torch.testing.assert_close(parameter.detach(), value, rtol=0, atol=0, equal_nan=True)
        assert parameter.requires_grad == flag
        assert (parameter.grad is None) == (not flag)
        assert parameter.grad is None or bool((parameter.grad == 0.5).all())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"options": {"newton_iterations": 0}}, "newton_iterations=0 must be a whole number from 1 to 10,000"),
        ({"options": {"newton_iterations": True}}, "newton_iterations=True must be a whole number"),
        ({"mode": "train"}, "mode='train' does not go with signal 'newton_spectrum'.*needs mode='eval'"),
        ({"labels": "model"}, "labels='model' does not go with"),
        ({"on_nonfinite": "skip"}, "on_nonfinite='skip' does not go with"),
        ({"keep_sums": True}, "keep_sums=True does not go with signal 'newton_spectrum'.*several passes"),
        ({"resume": "file"}, "resume='file' does not go with"),
        ({"until": 0.9, "signals": ("fisher", *SIGNAL)}, "until=0.9 does not go with"),
        ({"placement": "role:embedding"}, "solves for linear layers, of which placement chose none"),
        ({"batches": ()}, "no calibration batches"),
        ({"loss": lambda outputs, batch: outputs.hidden_states[0].sum((1, 2))}, "reads 'hidden_states' of the model"),
        ({"loss": lambda outputs, batch: outputs[0].sum((1, 2))}, r"reads '\[0\]' of the model's outputs"),
        ({"loss": lambda outputs, batch: batch["labels"].double().sum(1)}, "does not depend on outputs.logits"),
        ({"loss": lambda outputs, batch: outputs.logits.sum()}, r"returned \[\], not one value per example"),
    ],
)
def test_what_cannot_be_gets_a_sentence(how, sentence):
    model = models.build("llama")
    how = {"batches": models.batches("llama"), "signals": SIGNAL, **how}
    with pytest.raises(UserError, match=sentence) as caught:
        tailora.profile(model, how.pop("batches"), how.pop("signals"), **how)
    assert "\n" not in str(caught.value)


def test_operations_without_a_forward_derivative_get_a_sentence():
    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, x, labels=None):
            return type("Out", (), {"logits": Odd.apply(self.layer(x)), "loss": None})()

    model = Model()
    batch = {"x": torch.ones(3, 4), "labels": torch.tensor([0, 1, 2])}
    with pytest.raises(ProfileError, match="Model cannot be differentiated forward"):
        tailora.profile(model, [batch], SIGNAL, targets=find_targets(model))


def test_half_precision_goes_the_same_way():
    coarse = tailora.profile(models.build("bert", dtype=torch.bfloat16), models.batches("bert"), SIGNAL, options=WHOLE)
    assert coarse.meta["newton"]["stopped"] == "nothing left to solve"
    fine = tailora.profile(models.build("bert"), models.batches("bert"), SIGNAL, options=WHOLE)
    one, two = (np.log((p.signals[SIGNAL[0]] ** 2).sum(axis=1)) for p in (coarse, fine))
    assert np.corrcoef(one, two)[0, 1] > 0.9


def test_planted_ranks_show_where_the_gradient_hides_them():
    """Slow for a test of this file, and what the signal is for: the laboratory's first problem."""
    problem = build_problem(FAMILIES["sparse"](100))
    how = {"targets": problem.targets, "loss": lab_loss, "check": False, "options": {"newton_iterations": 8}}
    signals = ("gradient_spectrum", *SIGNAL)
    found = tailora.profile(problem.base, problem.calibration(), signals, **how)
    scores = {}
    for signal in signals:
        plan = tailora.plan(found, recipe="spectral", budget="r=2", r_max="8x", signal=signal)
        scores[signal] = matches(problem.planted, plan.ranks)["spearman"]
    assert scores["newton_spectrum"] > 0.4 > 0.1 > scores["gradient_spectrum"]


@pytest.mark.parametrize("name", FOUR)
def test_held_out_batches_judge_the_step_by_the_matrices_written_out(name, wide):
    model, targets, (own, other), kind = problem(name)
    dense, judge = (Dense(model, targets, [batch], kind, seed=3) for batch in (own, other))
    how = {"targets": targets, "seed": 3, "options": {"newton_iterations": 5}}
    found = tailora.profile(model, [own, other], BOTH, **how)
    steps = [dense.conjugate_gradients(k + 1) for k in range(found.meta["newton"]["iterations"])]
    gains = [judge.best_along(step) for step in steps]
    held_out = found.meta["newton"]["held_out"]
    assert (held_out["batches"], held_out["examples"], found.meta["examples"]) == (1, judge.n, dense.n + judge.n)
    np.testing.assert_allclose(held_out["gain_by_iteration"], gains, rtol=1e-6, atol=1e-12)
    chosen = int(np.argmax(gains))
    assert found.meta["newton"]["chosen"] == chosen + 1
    agreement = min(1.0, (gains[chosen] / -dense.value(steps[chosen])) ** 0.5)
    np.testing.assert_allclose(found.signals["newton_agreement"], agreement, rtol=1e-6)
    for values, target, expected in zip(found.signals[SIGNAL[0]], targets, dense.spectra(steps[chosen]), strict=True):
        np.testing.assert_allclose(values[: target.max_rank], expected, rtol=1e-6, atol=1e-7 * expected[0])
    whole = (dense.n * dense.loss + judge.n * judge.loss) / (dense.n + judge.n)
    assert found.meta["mean_loss"] == pytest.approx(whole, rel=1e-8)


def test_the_iterate_of_most_worth_is_taken():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    h, g = root @ root.T, torch.randn(9, 1, generator=generator, dtype=torch.float64)
    how = (lambda v: [h @ v[0]], [g], lambda v: [v[0].clone()])
    said = iter([1.0, 3.0, 2.0, 2.5, 2.9, 3.0, 9.0])
    found = minimise(*how, 50, judge=lambda step: next(said))
    assert (found.chosen, found.stopped) == (2, "held-out examples gain no more")
    assert found.worths == (1.0, 3.0, 2.0, 2.5, 2.9, 3.0)
    torch.testing.assert_close(found.step[0], minimise(*how, 2).step[0], rtol=0, atol=0)
    none = minimise(*how, 3, judge=lambda step: 0.0)
    assert (none.chosen, none.worths) == (1, (0.0, 0.0, 0.0))


def test_the_same_examples_agree_and_one_batch_has_nobody_to_ask():
    model, batch = models.build("gpt2"), models.batches("gpt2")[0]
    few = {"options": {"newton_iterations": 4}}
    twice = tailora.profile(model, [batch, batch], BOTH, **few)
    np.testing.assert_allclose(twice.signals["newton_agreement"], 1.0, rtol=1e-3)
    assert twice.meta["newton"]["chosen"] == 4
    alone = tailora.profile(model, [batch], SIGNAL, **few)
    np.testing.assert_array_equal(alone.signals[SIGNAL[0]], twice.signals[SIGNAL[0]])
    with pytest.raises(UserError, match=r"got 1 and a share of 0.125; give smaller batches"):
        tailora.profile(model, [batch], BOTH, **few)
    with pytest.raises(UserError, match=r"newton_held_out=0.7 must be a share from 0 to 0.5"):
        tailora.profile(model, [batch, batch], BOTH, options={"newton_held_out": 0.7})


def test_which_batches_are_held_out():
    assert [held_out_places(*how) for how in ((1, 0.5), (2, 0.125), (8, 0.0), (8, 0.25))] == [[], [1], [], [3, 7]]


def test_noise_in_the_labels_is_seen_and_leaves_ranks_uniform():
    agreements = {}
    for family in ("labels", "sparse"):
        problem = build_problem(FAMILIES[family](0))
        how = {"targets": problem.targets, "loss": lab_loss, "check": False, "options": {"newton_iterations": 6}}
        found = tailora.profile(problem.base, problem.calibration(16), BOTH, **how)
        agreements[family] = float(found.signals["newton_agreement"][0])
        ranks = tailora.plan(found, recipe="newton", budget="r=2").ranks.values()
        assert (max(ranks) > 4) == (family == "sparse"), ranks
    assert agreements["sparse"] > 0.5 > 0.2 > agreements["labels"]
