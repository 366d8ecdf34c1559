"""The elementwise Fisher by the obvious loop: one example, one backward pass, in float64."""

from __future__ import annotations

import torch

from reference.gradients_slow import causal_lm, classification, rows_of


def row_gradients(model, names, row, loss):
    """Return parameter name to the gradient of one example's loss."""
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)
        parameter.grad = None
    loss(model(**row), row).backward()
    return {n: torch.zeros_like(parameters[n]) if parameters[n].grad is None else parameters[n].grad for n in names}


def fisher(model, names, batches, loss, reduce=lambda g: g**2):
    """Return parameter name to the mean over examples of ``reduce(gradient)``; examples without labels are left out."""
    sums, count = {}, 0
    for batch in batches:
        for row in rows_of(batch):
            labels = row["labels"]
            counted = labels[:, 1:] if loss is causal_lm else labels
            if loss is not classification and not (counted != -100).any():
                continue
            count += 1
            for name, gradient in row_gradients(model, names, row, loss).items():
                sums[name] = sums.get(name, 0) + reduce(gradient.detach())
    return {name: total / count for name, total in sums.items()}


def fisher_exact(model, names, batches):
    """Return the expectation over all classes of the squared gradient, for a classification head."""
    sums, count = {}, 0
    for batch in batches:
        for row in rows_of(batch):
            count += 1
            with torch.no_grad():
                probabilities = model(**row).logits[0].double().softmax(-1)
            for label, probability in enumerate(probabilities):
                one = {**row, "labels": torch.tensor([label])}
                for name, gradient in row_gradients(model, names, one, classification).items():
                    sums[name] = sums.get(name, 0) + probability * gradient.detach() ** 2
    return {name: total / count for name, total in sums.items()}
