"""What must never happen: a model left changed, a wrong number handed out, a bad example unnamed."""

from __future__ import annotations

import copy

import pytest
import torch
from elementwise_cases import adapt, batches_for, build, error, loop, lora, trainable

from reference import elementwise_slow as slow
from tailora.errors import ProfileError, UserError
from tailora.signals.elementwise import elementwise_fisher


def state(model):
    """Return everything that a measurement could disturb."""
    return {
        "attributes": {n: sorted(m.__dict__) for n, m in model.named_modules()},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()},
        "training": {n: m.training for n, m in model.named_modules()},
        "required": {n: p.requires_grad for n, p in model.named_parameters()},
        "grads": {n: p.grad for n, p in model.named_parameters()},
        "values": {n: p.detach().clone() for n, p in model.named_parameters()},
        "rng": torch.get_rng_state(),
    }


def assert_same(before, after):
    for part in ("attributes", "hooks", "training", "required"):
        assert before[part] == after[part], part
    assert all(after["grads"][name] is grad for name, grad in before["grads"].items())
    assert all(torch.equal(after["values"][name], value) for name, value in before["values"].items())
    assert torch.equal(before["rng"], after["rng"])


def unusual(model):
    """Put a model into a state that is easily lost."""
    model.train()
    model.get_submodule("base_model.model").eval()
    names = trainable(model)
    parameters = dict(model.named_parameters())
    for name in names:
        parameters[name].grad = torch.ones_like(parameters[name])
    return model


@pytest.mark.parametrize("kw", [{}, {"one_by_one": True}, {"mode": "train"}, {"kind": "true"}])
def test_the_model_is_left_as_it_was(kw):
    model = unusual(adapt(build("llama"), lora("llama", use_dora=True, target_modules=["q_proj", "embed_tokens"])))
    before = state(model)
    elementwise_fisher(model, batches_for("llama"), **kw)
    assert_same(before, state(model))


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("when", [1, 2, 5, 8])
def test_also_after_an_error_or_ctrl_c(stop, when):
    model = unusual(adapt(build("llama"), lora("llama")))
    before, calls = state(model), []

    def loss(outputs, batch):
        calls.append(1)
        if len(calls) == when:
            raise stop("in the middle")
        return slow_rows(outputs, batch)

    with pytest.raises(stop):
        elementwise_fisher(model, batches_for("llama") * 3, loss=loss)
    assert len(calls) == when
    assert_same(before, state(model))


def slow_rows(outputs, batch):
    tokens = torch.nn.functional.cross_entropy(
        outputs.logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none"
    )
    return tokens.mean(dim=1)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_gradient_checkpointing(name, reentrant):
    model = adapt(build(name), lora(name, lora_dropout=0.0))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    wanted, batches = loop(model, name, batches_for(name)), batches_for(name)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    ran = []
    inside = next(m for n, m in model.named_modules() if n.endswith(("q_proj", "self.query")))
    handle = inside.register_forward_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    found = elementwise_fisher(model, batches, mode="train")
    handle.remove()
    assert found.one_by_one == ""
    assert error(found.tensors, wanted) < 1e-10
    # Five calls before the batches, and two per batch: the block ran again in the backward pass.
    assert len(ran) == 5 + 2 * len(batches)
    again = elementwise_fisher(model, batches, mode="train", one_by_one=True)
    assert error(again.tensors, wanted) < 1e-10


def test_dropout_is_off_by_default_and_on_when_asked():
    model, batches = adapt(build("bert"), lora("bert", lora_dropout=0.5)).train(), batches_for("bert")
    plain = elementwise_fisher(model, batches)
    assert error(plain.tensors, loop(model.eval(), "bert", batches)) < 1e-10
    dropped = elementwise_fisher(model, batches, mode="train", seed=1)
    assert dropped.one_by_one == ""
    assert error(dropped.tensors, plain.tensors) > 0.01
    assert error(dropped.tensors, elementwise_fisher(model, batches, mode="train", seed=1).tensors) == 0


def test_dropout_with_the_same_masks_equals_the_loop():
    class Fixed(torch.nn.Module):
        """Dropout whose mask depends on the place and not on the example."""

        def forward(self, x):
            if not self.training:
                return x
            keep = (torch.arange(x[0].numel()).reshape(x[0].shape) * 7919 % 5 > 1).to(x.dtype)
            return x * keep / 0.6

    model, batches = adapt(build("llama"), lora("llama", lora_dropout=0.1)), batches_for("llama", sizes=(4,))
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Dropout):
                setattr(module, name, Fixed())
    found = elementwise_fisher(model, batches, mode="train")
    assert found.one_by_one == ""
    twin = copy.deepcopy(model).train()
    assert error(found.tensors, slow.fisher(twin, trainable(twin), batches, slow.causal_lm)) < 1e-10
    assert error(found.tensors, elementwise_fisher(model, batches).tensors) > 0.01


class TimeFirst(torch.nn.Module):
    """Position t of every example lies in row t, and there are as many positions as examples."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)

    def forward(self, x, labels=None):
        hidden = self.inner(x.transpose(0, 1)).transpose(0, 1).tanh().mean(1)
        return type("Out", (), {"logits": self.head(hidden), "loss": None})()


def vectors(size=3, tokens=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, tokens, 4, generator=generator, dtype=torch.float64)
    return {"x": x, "labels": torch.arange(size) % 3}


def small(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().double()


def test_the_check_catches_rows_that_are_no_examples():
    model, batch = small(TimeFirst), vectors(3, 2)
    # Two examples are looked at, and each has two positions: by their shape nothing is wrong.
    found = elementwise_fisher(model, [batch])
    assert "differ from those of single examples" in found.one_by_one
    wanted = slow.fisher(copy.deepcopy(model), trainable(model), [batch], slow.classification)
    assert error(found.tensors, wanted) < 1e-10
    with pytest.raises(ProfileError, match=r"whole batches are not exact here: .*leave one_by_one at None"):
        elementwise_fisher(model, [batch], one_by_one=False)


class Irregular(torch.nn.Module):
    """A layer that is called twice in batches of more than three examples, and read without a call in those of six."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)

    def forward(self, x, labels=None):
        hidden = self.inner(x.mean(1)).tanh()
        if len(x) > 3:
            hidden = self.inner(hidden).tanh()
        if len(x) == 1:
            hidden = self.inner(hidden).tanh() if bool(x.sum() > 1e3) else hidden
        return type("Out", (), {"logits": self.head(hidden), "loss": None})()


def test_a_later_batch_that_behaves_otherwise_is_taken_one_by_one():
    model, batches = small(Irregular), [vectors(3), vectors(5, seed=1)]
    found = elementwise_fisher(model, batches)
    assert "used 2 times in a batch and 1 times" in found.one_by_one
    wanted = slow.fisher(copy.deepcopy(model), trainable(model), batches, slow.classification)
    assert error(found.tensors, wanted) < 1e-10


class Bypass(torch.nn.Module):
    """Reads a layer's weight without calling the layer, but only where an input is large."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 3)

    def forward(self, x, labels=None):
        hidden = x.mean(1)
        if bool((x.abs() > 50).any()):
            hidden = hidden @ self.inner.weight
        return type("Out", (), {"logits": self.head(hidden), "loss": None})()


@pytest.mark.parametrize("late", [True, False])
def test_a_weight_that_is_read_without_its_layer(late):
    model, plain, large = small(Bypass), vectors(3), vectors(3, seed=1)
    large["x"] = large["x"] * 100
    batches = [plain, large] if late else [large, plain]
    found = elementwise_fisher(model, batches)
    assert "inner.weight has a gradient although its layer is never called" in found.one_by_one
    wanted = slow.fisher(copy.deepcopy(model), trainable(model), batches, slow.classification)
    assert error(found.tensors, wanted) < 1e-10


def test_without_the_check_folded_inputs_are_taken_one_by_one():
    model, batches = adapt(build("opt"), lora("opt")), batches_for("opt")
    found = elementwise_fisher(model, batches, check=False)
    assert "in a batch of 2 examples" in found.one_by_one
    assert error(found.tensors, loop(model, "opt", batches)) < 1e-10


class LooksAtPadding(torch.nn.Module):
    """A convolution that no mask keeps from the padding."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(9, 4)
        self.conv = torch.nn.Conv1d(4, 4, 3, padding=1)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask, labels=None):
        hidden = self.conv(self.table(input_ids).transpose(1, 2)).transpose(1, 2).tanh()
        hidden = (hidden * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
        return type("Out", (), {"logits": self.head(hidden), "loss": None})()


def test_padding_is_only_cut_from_models_that_do_not_look_at_it():
    model = small(LooksAtPadding)
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 1, 2, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.arange(3)}
    found = elementwise_fisher(model, [batch])
    assert "conv.weight lies in a layer for which no batched rule is known" in found.one_by_one
    wanted = slow.fisher(copy.deepcopy(model), trainable(model), [batch], slow.classification)
    assert error(found.tensors, wanted) < 1e-10


@pytest.mark.parametrize("one_by_one", [None, True])
def test_an_example_that_is_not_finite_is_named_or_skipped(one_by_one):
    model, batches = small(TimeFirst), [vectors(3, 2), vectors(3, 2, seed=1)]
    model.inner.requires_grad_(False)
    batches[1]["x"][1] = float("nan")
    with pytest.raises(ProfileError, match=r"the loss of example 1 in batch number 1 is not finite; .*skip"):
        elementwise_fisher(model, batches, one_by_one=one_by_one)
    found = elementwise_fisher(model, batches, one_by_one=one_by_one, on_nonfinite="skip")
    assert (found.examples, found.skipped) == (5, 1)
    good = [batches[0], {k: v[[0, 2]] for k, v in batches[1].items()}]
    wanted = slow.fisher(copy.deepcopy(model), trainable(model), good, slow.classification)
    assert error(found.tensors, wanted) < 1e-10


def test_a_gradient_that_is_not_finite_is_named():
    class Root(TimeFirst):
        def forward(self, x, labels=None):
            return type("Out", (), {"logits": (self.head(x.mean(1)) * 0).sqrt(), "loss": None})()

    model, batches = small(Root), [vectors(3, 2)]
    model.inner.requires_grad_(False)
    with pytest.raises(ProfileError, match=r"the gradient of example \d in batch number 0 is not finite"):
        elementwise_fisher(model, batches)


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"kind": "exact"}, "unknown kind 'exact'"),
        ({"reduction": "abs"}, "unknown reduction 'abs'"),
        ({"mode": "training"}, "unknown mode 'training'; did you mean 'train'"),
        ({"on_nonfinite": "ignore"}, "unknown on_nonfinite 'ignore'"),
        ({"parameters": ["heat.weight"]}, "unknown parameter 'heat.weight'; did you mean 'head.weight'"),
        ({"parameters": []}, "parameters= is empty"),
        ({"loss": "classify"}, "unknown loss 'classify'"),
    ],
)
def test_options_that_cannot_be_used(kw, message):
    with pytest.raises(UserError, match=message):
        elementwise_fisher(small(TimeFirst), [vectors()], **kw)


def test_inputs_that_cannot_be_used():
    model = small(TimeFirst)
    with pytest.raises(UserError, match="there are no calibration batches"):
        elementwise_fisher(model, [])
    with pytest.raises(UserError, match="'extra' has shape \\[7, 2\\] in a batch of 3 examples"):
        elementwise_fisher(lambda_model(), [{**vectors(), "extra": torch.zeros(7, 2)}])
    frozen = small(TimeFirst).requires_grad_(False)
    with pytest.raises(UserError, match="no parameter requires a gradient"):
        elementwise_fisher(frozen, [vectors()])
    with pytest.raises(UserError, match="'1' mixes the examples of a batch in training mode"):
        elementwise_fisher(
            torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)), [vectors()], mode="train"
        )
    llama = adapt(build("llama"), lora("llama"))
    with pytest.raises(UserError, match="'true-exact' sums over the classes"):
        elementwise_fisher(llama, batches_for("llama"), kind="true-exact")
    silent = batches_for("llama", sizes=(3,))[0]
    silent["labels"] = torch.full_like(silent["labels"], -100)
    with pytest.raises(UserError, match="none of 3 examples counted"):
        elementwise_fisher(llama, [silent])


def lambda_model():
    class Extra(TimeFirst):
        def forward(self, x, extra=None, labels=None):
            return super().forward(x, labels)

    return small(Extra)
