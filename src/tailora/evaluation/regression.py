"""Scoring of regressors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tailora.evaluation import metrics
from tailora.evaluation.base import Evaluation, evaluating, in_order, inputs_of, mean, row_number

if TYPE_CHECKING:
    import torch


def regress(
    model: Any,
    batches: Iterable[dict[str, torch.Tensor]],
    *,
    order: Sequence[int] | None = None,
    primary: str = "pearson",
) -> Evaluation:
    """Score a regressor.

    Args:
        model: Called with each batch without its labels; its ``logits`` are ``[batch, 1]``.
        batches: Dicts of tensors with ``labels`` ``[batch]``.
        order: The data's row number of each example in the order of the batches.
        primary: The score that decides.

    Returns:
        Pearson and Spearman correlation, the mean squared error as the loss, and records
        ``{index, label, prediction, loss}``.

    Raises:
        DataError: There is no example.
    """
    records: list[dict[str, Any]] = []
    with evaluating(model) as device:
        for batch in batches:
            predictions = model(**inputs_of(batch, device)).logits.double().reshape(-1).tolist()
            for label, prediction in zip(batch["labels"].double().reshape(-1).tolist(), predictions, strict=True):
                loss = (prediction - label) ** 2
                index = row_number(order, len(records))
                records.append({"index": index, "label": label, "prediction": prediction, "loss": loss})
    records = in_order(records)
    labels = [record["label"] for record in records]
    predictions = [record["prediction"] for record in records]
    return Evaluation(
        loss=mean(records, "loss"),
        examples=len(records),
        records=tuple(records),
        metrics={
            "pearson": metrics.pearson(labels, predictions),
            "spearman": metrics.spearman(labels, predictions),
        },
        primary=primary,
    )
