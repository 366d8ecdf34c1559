"""Models, masks and trainings that the tests of masks share."""

from __future__ import annotations

import copy
import warnings

import peft
import torch

import models
import tailora


def adapted(name="llama", dtype=torch.float64, seed=0, **kw):
    """Return a tiny peft model with a fresh LoRA adapter."""
    kind = models.BUILDERS[name][1]
    model = models.build(name, dtype=dtype)
    options = {"r": 3, "target_modules": "all-linear", "task_type": models.TASK_TYPES[kind], **kw}
    return wrap(model, peft.LoraConfig(**options), seed)


def wrap(model, config, seed=0):
    """Return the model with a fresh adapter, in the model's dtype."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return peft.get_peft_model(model, config).to(next(model.parameters()).dtype).eval()


def mask_of(model, name="llama", keep=0.2, **kw):
    return tailora.fisher_mask(model, models.batches(name), **{"keep": keep, "warmup_steps": 4, **kw})


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def frozen_everywhere(mask, before, model):
    """Tell whether every entry that the mask does not keep has the bits it had."""
    now = mask.parameters(model)
    return all(torch.equal(now[n].detach()[~t], before[n][~t]) for n, t in mask.tensors.items())


def moved_everywhere(mask, before, model):
    """Tell whether the mask's entries changed: nine in ten of them, as gradients can be zero."""
    now = mask.parameters(model)
    moved = sum(int((now[n].detach()[t] != before[n][t]).sum()) for n, t in mask.tensors.items())
    return moved > 0.9 * mask.kept


def train(model, optimizer, batches, steps, *, accumulation=1, clip=None, none=True, schedule=None):
    """Train as a plain loop does; return the norms."""
    norms = []
    for step in range(steps):
        for part in range(accumulation):
            batch = batches[(step * accumulation + part) % len(batches)]
            (model(**batch).loss / accumulation).backward()
        if clip is not None:
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip)))
        optimizer.step()
        if schedule is not None:
            schedule.step()
        optimizer.zero_grad(set_to_none=none)
    return norms


def train_slow(model, masks, twin, batches, steps, *, accumulation=1, clip=None):
    """Train a copy of the model with a dense twin of the optimizer; return its values and norms."""
    from reference import masks_slow as slow

    model, norms = copy.deepcopy(model), []
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    masks = {name: masks.get(name, torch.ones(p.shape, dtype=torch.bool)) for name, p in parameters.items()}
    for step in range(steps):
        gradients = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for part in range(accumulation):
            batch = batches[(step * accumulation + part) % len(batches)]
            loss = model(**batch).loss / accumulation
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(gradients, found, strict=True):
                gradients[name] += 0 if gradient is None else gradient * masks[name]
        if clip is not None:
            norms.append(slow.clip(gradients, clip))
        held = {name: p.detach().clone() for name, p in parameters.items()}
        twin.step(held, gradients, masks)
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(held[name])
    return {name: p.detach() for name, p in parameters.items()}, norms
