"""Models with UniPELT that these tests share."""

from __future__ import annotations

import peft
import torch

import models
from tailora.unipelt import UniPELTConfig, UniPELTLayer

SMALL = {"lora_rank": 2, "prefix_length": 3, "bottleneck": 3}


def wrap(model, config=None, seed=0, **kw):
    """Return a peft model; ``init_weights=False`` unless said otherwise, so that nothing is at its zero."""
    config = config or UniPELTConfig(**{**SMALL, "init_weights": False, **kw})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peft.get_peft_model(model, config)
    dtype = model.get_base_model().dtype
    # peft leaves new weights in float32; the tests of exactness need them as the base.
    return (model.double() if dtype == torch.float64 else model).eval()


def build(name, dtype=torch.float64, attention="sdpa", scale=1.0):
    model = models.build(name, dtype=dtype, scale=scale)
    model.set_attn_implementation(attention)
    return model


def logits(model, batch):
    with torch.no_grad():
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits


def batch_of(name):
    return models.batches(name)[0]


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, UniPELTLayer)]
