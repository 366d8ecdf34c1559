"""Several texts in one row: the row is the example, and its gradient that of the mean over all its counted tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DataCollatorWithFlattening

import models
import tailora
from reference import gradients_slow as slow
from reference import signals_slow
from tailora.data.packing import pack
from tailora.errors import UserError

SIGNALS = ("fisher", "gradient_norm", "gradient_spectrum", "activation_second_moment")
# Llama normalises in float32 whatever its dtype, where the last bit of another order of sums is a float32 one.
ALONE = {"gpt2": 1e-10, "llama": 1e-6}
LENGTHS = ((5, 3, 7), (6, 9), (4, 4, 4, 3))


def texts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 61, (length,), generator=generator).tolist() for length in lengths]


def build(name):
    """Return a model without a cache: transformers tells packed rows by their positions only where there is none."""
    model = models.build(name, dtype=torch.float64)
    model.config.use_cache = False
    return model


def of_texts(model, targets, rows):
    """Return a row's gradient from its texts one by one: their mean gradients, weighted by their counted tokens."""
    found = []
    for row in rows:
        alone = [{"input_ids": torch.tensor([ids]), "labels": torch.tensor([ids])} for ids in row]
        examples = slow.example_gradients(model, targets, alone, slow.causal_lm)
        counts = [len(ids) - 1 for ids in row]
        found.append(
            [
                [sum(c * e[i][0] for c, e in zip(counts, examples, strict=True)) / sum(counts)]
                for i, _ in enumerate(targets)
            ]
        )
    return found


def flattened(row):
    features = [{"input_ids": ids} for ids in row]
    return {k: torch.as_tensor(v) for k, v in DataCollatorWithFlattening()(features, return_tensors="pt").items()}


def together(rows):
    """Return rows of equal length as one batch."""
    made = [flattened(row) for row in rows]
    return {key: torch.cat([one[key] for one in made]) for key in made[0]}


def block_diagonal(batch):
    """Return a causal mask for each row that does not reach over a text's beginning, bool ``[n, 1, t, t]``."""
    text = (batch["position_ids"] == 0).cumsum(-1)
    return ((text[:, :, None] == text[:, None, :]).tril())[:, None]


def check(found, examples, tolerance=1e-10):
    assert found.meta["examples"] == len(examples)
    np.testing.assert_allclose(found.signals["fisher"], slow.fisher_trace(examples), rtol=tolerance)
    for i, target in enumerate(found.targets):
        assert found.signals["gradient_norm"][i] == pytest.approx(
            signals_slow.gradient_norm(examples, i), rel=tolerance
        )
        wanted = slow.gradient_spectrum(examples, i)
        mine = found.signals["gradient_spectrum"][i][: target.max_rank]
        np.testing.assert_allclose(mine, wanted, rtol=10 * tolerance, atol=10 * tolerance * max(wanted))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_flattened_rows_of_unequal_length(name):
    rows = [texts(lengths, seed) for seed, lengths in enumerate(LENGTHS)]
    batches = [flattened(row) for row in rows]
    model = build(name)
    found = tailora.profile(model, batches, SIGNALS)
    assert found.meta["one_by_one"] == ""
    check(found, slow.example_gradients(build(name), found.targets, batches, slow.causal_lm))
    check(found, of_texts(build(name), found.targets, rows), ALONE[name])


@pytest.mark.parametrize("mask", ["positions", "bool", "added", "shared"])
def test_batches_of_packed_rows(mask):
    """Told by positions that begin anew, by a mask with one block a text, or by one such mask for all rows."""
    rows = [texts((5, 10) if mask == "shared" else lengths, seed) for seed, lengths in enumerate(LENGTHS)]
    batch = together(rows)
    if mask != "positions":
        batch["attention_mask"] = block_diagonal(batch)
    if mask == "shared":
        batch = {k: v[:1] if k in ("position_ids", "attention_mask") else v for k, v in batch.items()}
    if mask == "added":
        batch["attention_mask"] = torch.where(batch["attention_mask"], 0.0, -1e9).double()
    found = tailora.profile(build("llama"), [batch], SIGNALS)
    assert found.meta["one_by_one"] == ""
    check(found, slow.example_gradients(build("llama"), found.targets, [batch], slow.causal_lm))
    check(found, of_texts(build("llama"), found.targets, rows), ALONE["llama"])


def test_the_texts_of_a_row_are_one_example_and_not_several():
    rows = [texts((5, 10)), texts((8, 7), seed=1)]
    packed = tailora.profile(build("llama"), [together(rows)], ("fisher",))
    alone = [{"input_ids": torch.tensor([ids]), "labels": torch.tensor([ids])} for row in rows for ids in row]
    apart = tailora.profile(build("llama"), alone, ("fisher",))
    assert (packed.meta["examples"], apart.meta["examples"]) == (2, 4)
    # A mean over the texts of a row is shorter than the texts' own gradients.
    assert (packed.signals["fisher"] < 0.9 * apart.signals["fisher"]).all()


def test_blocks_as_training_packs_them():
    """Tailora's own packing lets attention reach over the texts of a block, so a block is one text to the model."""
    examples = [{"input_ids": ids, "labels": ids} for ids in texts((5, 3, 7, 6, 9, 2))]
    blocks = pack(examples, 16, 2)
    assert len(blocks) > 2
    batches = [{key: torch.tensor([value]) for key, value in block.items()} for block in blocks]
    whole = [
        {key: torch.cat([batch[key] for batch in batches[:-1]]) for key in batches[0]},
        batches[-1],
    ]
    found = tailora.profile(build("llama"), whole, SIGNALS)
    check(found, slow.example_gradients(build("llama"), found.targets, batches, slow.causal_lm))


def test_a_loss_a_text_is_refused():
    """A row cannot be taken apart, so a loss with more values than rows has no example to belong to."""

    def each(outputs, batch):
        return torch.zeros(4, dtype=torch.float64) + outputs.logits.sum()

    with pytest.raises(UserError, match=r"returned \[4\], not one value per example \[2\]"):
        tailora.profile(build("llama"), [together([texts((5, 10)), texts((8, 7), seed=1)])], ("fisher",), loss=each)
