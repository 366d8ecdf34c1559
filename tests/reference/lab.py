"""The laboratory's numbers, computed slowly and plainly."""

from __future__ import annotations

import math

import torch


def kl_loss(model, batch):
    """Mean over positions of KL(teacher || model), written out."""
    inputs = {name: rows for name, rows in batch.items() if not name.startswith("loss_")}
    own = torch.softmax(model(**inputs).logits, dim=-1)
    known = batch["loss_target"].to(own.dtype).exp()
    return (known * (known / own).log()).sum(dim=-1).mean()


def spearman(first, second):
    """Spearman's correlation from the definition: Pearson's of the mean ranks."""

    def ranks(values):
        return [
            sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
            for value in values
        ]

    a, b = ranks(first), ranks(second)
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    top = sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True))
    return top / math.sqrt(sum((x - ma) ** 2 for x in a) * sum((y - mb) ** 2 for y in b))
