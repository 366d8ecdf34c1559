"""Scoring of generated text: exact match and ROUGE-L."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tailora.evaluation import metrics
from tailora.evaluation.base import Evaluation, evaluating, inputs_of, mean

if TYPE_CHECKING:
    import torch


def write(
    model: Any,
    batches: Iterable[dict[str, torch.Tensor]],
    *,
    scored: Evaluation,
    texts: Mapping[int, str],
    order: Sequence[int],
    tokenizer: Any,
    max_new_tokens: int,
    primary: str = "loss",
) -> Evaluation:
    """Let a sequence-to-sequence model write some of the examples and add how well it did.

    Args:
        model: Its ``generate`` is called, greedily, with each batch without its labels.
        batches: The examples to write for.
        scored: The evaluation of all examples that the scores are added to.
        texts: The wanted text of each example in ``order``.
        order: The data's row number of each example in the order of the batches.
        tokenizer: Turns tokens into text.
        max_new_tokens: Longest text.
        primary: The score that decides.

    Returns:
        ``scored`` with ``exact_match`` and ``rouge_l`` over the written examples, whose records gain
        ``{label, prediction, score}``; ``score`` is the example's ROUGE-L.
    """
    written: list[str] = []
    with evaluating(model) as device:
        for batch in batches:
            tokens = model.generate(
                **inputs_of(batch, device), do_sample=False, num_beams=1, max_new_tokens=max_new_tokens
            )
            written += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    found = dict(zip(order, written, strict=True))
    records, results = [], []
    for record in scored.records:
        index = record["index"]
        if index in found:
            wanted, got = texts[index].strip(), found[index].strip()
            record = record | {"label": wanted, "prediction": got, "score": metrics.rouge_l(wanted, got)}
            results.append({"match": wanted == got, "score": record["score"]})
        records.append(record)
    return dataclasses.replace(
        scored,
        records=tuple(records),
        metrics={"exact_match": mean(results, "match"), "rouge_l": mean(results, "score")},
        primary=primary,
    )
