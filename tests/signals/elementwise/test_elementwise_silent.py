"""Examples without a gradient: what they cannot show must not be decided by them."""

from __future__ import annotations

import copy

import pytest
import torch
from elementwise_cases import adapt, batches_for, build, error, loop, lora, trainable

from reference import elementwise_slow as slow
from tailora.signals.elementwise import elementwise_fisher


class TokensLookAtPadding(torch.nn.Module):
    """A convolution that no mask keeps from the padding; an example whose first token is 8 has no finite logits."""

    def __init__(self):
        super().__init__()
        self.table, self.conv = torch.nn.Embedding(9, 4), torch.nn.Conv1d(4, 4, 3, padding=1)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, input_ids, attention_mask, labels=None):
        hidden = self.conv(self.table(input_ids).transpose(1, 2)).transpose(1, 2).tanh()
        broken = (input_ids[:, :1] == 8)[..., None]
        return type("Out", (), {"logits": self.head(hidden).masked_fill(broken, float("nan")), "loss": None})()


def made(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().double()


def token_mean(outputs, row):
    return torch.nn.functional.cross_entropy(outputs.logits[0], row["labels"][0], ignore_index=-100)


@pytest.mark.parametrize("silent", ["no label", "not finite"])
def test_an_example_without_a_gradient_does_not_decide_that_padding_is_cut(silent):
    model = made(TokensLookAtPadding)
    ids = torch.tensor([[1, 2, 3, 4, 5], [7, 2, 0, 0, 0], [6, 7, 0, 0, 0], [5, 1, 2, 0, 0], [4, 0, 0, 0, 0]])
    labels = torch.where(ids != 0, ids % 5, -100)
    if silent == "no label":
        labels[1] = -100
    else:
        ids[1, 0] = 8
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}
    found = elementwise_fisher(model, [batch], loss="token", one_by_one=True, on_nonfinite="skip")
    assert (found.examples, found.skipped) == (4, int(silent == "not finite"))
    good = [{k: v[[0, 2, 3, 4]] for k, v in batch.items()}]
    wanted = slow.fisher(copy.deepcopy(model), trainable(model), good, token_mean)
    assert error(found.tensors, wanted) < 1e-10


@pytest.mark.parametrize("silent", [True, False])
def test_padding_is_still_cut_where_the_first_padded_example_has_no_label(silent):
    model, batch = adapt(build("llama"), lora("llama")), batches_for("llama", sizes=(4,))[0]
    batch = {k: v[batch["attention_mask"].sum(1).argsort(stable=True)] for k, v in batch.items()}
    if silent:
        batch["labels"][0] = -100
    lengths = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, args, out: lengths.append(args[0].shape[1]))
    found = elementwise_fisher(model, [batch], one_by_one=True)
    hook.remove()
    # An example of 5 tokens, then 7, 9 and 9: whole and cut until one of them has a gradient, then cut alone.
    wanted = [9, 5, 9, 9, 7, 7, 9, 9] if silent else [9, 5, 5, 7, 9, 9]
    assert lengths[-len(wanted) :] == wanted
    assert error(found.tensors, loop(model, "llama", [batch])) < 1e-10


class TimeFirst(torch.nn.Module):
    """Position t of every example lies in row t, and there are as many positions as examples."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)

    def forward(self, x, labels=None):
        hidden = self.inner(x.transpose(0, 1)).transpose(0, 1).tanh().mean(1)
        return type("Out", (), {"logits": self.head(hidden), "loss": None})()


def vectors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(2, 2, 4, generator=generator, dtype=torch.float64), "labels": torch.arange(2)}


def test_two_examples_without_a_gradient_do_not_show_that_batches_are_exact():
    model, silent, plain = made(TimeFirst), vectors(0), vectors(1)
    silent["labels"] = torch.full((2,), -100)
    found = elementwise_fisher(model, [silent, plain])
    assert "differ from those of single examples" in found.one_by_one
    wanted = slow.fisher(copy.deepcopy(model), trainable(model), [plain], slow.classification)
    assert error({name: tensor * found.examples / 2 for name, tensor in found.tensors.items()}, wanted) < 1e-10
