"""Per-example gradients by the batch-size-1 loop with autograd on the weights themselves, in float64."""

from __future__ import annotations

import math

import torch


def rows_of(batch):
    """Yield each example of a batch as a batch of one."""
    size = len(batch["labels"])
    for i in range(size):
        yield {k: v[i : i + 1] if v.ndim and len(v) == size else v for k, v in batch.items()}


def weight_of(model, target):
    """Return the parameter behind a target."""
    return model.get_parameter(target.name if target.kind == "parameter" else f"{target.name}.weight")


def oriented(target, gradient):
    """Return a gradient as a list of (out, in) matrices."""
    matrices = list(gradient) if gradient.ndim == 3 else [gradient]
    if target.kind == "conv1d":  # the shape does not tell where it is square
        return [m.T for m in matrices]
    return [m if tuple(m.shape) == target.shape else m.T for m in matrices]


def example_gradients(model, targets, batches, loss):
    """Return, per example, the list over targets of its gradient matrices; ``loss(outputs, row)`` is a scalar."""
    model.eval()
    weights = [weight_of(model, t) for t in targets]
    for p in model.parameters():
        p.requires_grad_(False)
    for w in weights:
        w.requires_grad_(True)
    out = []
    for batch in batches:
        for row in rows_of(batch):
            value = loss(model(**row), row)
            grads = torch.autograd.grad(value, weights, allow_unused=True)
            out.append(
                [
                    oriented(t, torch.zeros_like(w) if g is None else g)
                    for t, w, g in zip(targets, weights, grads, strict=True)
                ]
            )
    return out


def causal_lm(outputs, row):
    """Mean negative log-likelihood of one sequence's own shifted labels."""
    logp = outputs.logits[0, :-1].double().log_softmax(-1)
    labels = row["labels"][0, 1:]
    terms = [-logp[t, label] for t, label in enumerate(labels.tolist()) if label != -100]
    return sum(terms) / len(terms)


def unshifted(outputs, row):
    """Mean negative log-likelihood of one sequence's own labels."""
    logp = outputs.logits[0].double().log_softmax(-1)
    terms = [-logp[t, label] for t, label in enumerate(row["labels"][0].tolist()) if label != -100]
    return sum(terms) / len(terms)


def classification(outputs, row):
    """Cross-entropy of one example."""
    return -outputs.logits[0].double().log_softmax(-1)[int(row["labels"][0])]


LOSSES = {"causal-lm": causal_lm, "classification": classification, "token": unshifted}
"""By the kind of a test model's labels."""


def fisher_trace(examples):
    """Mean over examples of the squared Frobenius norm, per target."""
    n = len(examples)
    return [sum(float((m**2).sum()) for e in examples for m in e[i]) / n for i in range(len(examples[0]))]


def gradient_spectrum(examples, i):
    """Singular values of the mean gradient of target ``i``; experts combined by the root of summed squares."""
    n = len(examples)
    means = [sum(e[i][k] for e in examples) / n for k in range(len(examples[0][i]))]
    spectra = [torch.linalg.svdvals(m) for m in means]
    return [math.sqrt(sum(float(s[k]) ** 2 for s in spectra)) for k in range(len(spectra[0]))]
