"""Models, adapters and comparisons that the tests of the elementwise Fisher share."""

from __future__ import annotations

import copy

import peft
import torch
import transformers as tf

import models
from reference import elementwise_slow as slow
from reference import gradients_slow

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "num_labels": 3}


def vit():
    return tf.ViTForImageClassification(tf.ViTConfig(**VIT, image_size=16, patch_size=8))


def build(name, dtype=torch.float64, seed=0, scale=4.0):
    """Return one of the tiny models, or a tiny ViT."""
    if name != "vit":
        return models.build(name, seed, dtype, scale)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = vit()
    return model.to(dtype).eval()


def kind_of(name):
    return "classification" if name == "vit" else models.BUILDERS[name][1]


def batches_for(name, sizes=(4, 3), dtype=torch.float64):
    if name != "vit":
        return models.batches(name, sizes)
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "pixel_values": torch.randn(size, 3, 16, 16, generator=generator, dtype=torch.float64).to(dtype),
            "labels": torch.randint(0, 3, (size,), generator=generator),
        }
        for size in sizes
    ]


def adapt(model, config, seed=0, scale=0.3):
    """Return a peft model in the model's dtype with no adapter tensor left at its initial zero or identity."""
    dtype = next(model.parameters()).dtype
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(model, config).to(dtype)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=scale)
    return adapted.eval()


def lora(name, **kw):
    task = None if name == "vit" else models.TASK_TYPES[kind_of(name)]
    kw = {"r": 3, "target_modules": "all-linear", "task_type": task, **kw}
    return peft.LoraConfig(**kw)


def trainable(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def error(found, wanted):
    """Return the largest relative error of any tensor; one that is 1e-8 of the largest is nothing but rounding."""
    scale = max(float(tensor.norm()) for tensor in wanted.values())
    return max(
        float((found[name].double() - tensor.double()).norm()) / max(float(tensor.norm()), 1e-8 * scale)
        for name, tensor in wanted.items()
    )


def loop(model, name, batches, **kw):
    """Return the slow twin's Fisher on a float64 copy of the model."""
    twin = copy.deepcopy(model).double()
    given = [{k: v.double() if v.is_floating_point() else v for k, v in batch.items()} for batch in batches]
    return slow.fisher(twin, trainable(twin), given, gradients_slow.LOSSES[kind_of(name)], **kw)
