"""Models with bottleneck adapters that these tests share."""

from __future__ import annotations

import peft
import torch

import models
from tailora.bottleneck import BottleneckConfig

ARCHITECTURES = ("bert", "deberta", "albert", "llama", "opt", "gpt2", "t5", "vit")


def wrap(model, config=None, seed=0, **kw):
    """Return a peft model; ``init_weights=False`` unless said otherwise, so that nothing is at its zero."""
    config = config or BottleneckConfig(**{"bottleneck": 3, "init_weights": False, **kw})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(model, config).eval()


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def batch_of(name):
    return models.batches(name)[0]


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def randomise(model, scale=0.2, seed=1):
    """Move every trainable parameter, so that the adapters matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=scale)
    return model
