"""lm-eval's results by example, in the form of a run's predictions."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from tailora.evaluation.base import cut_text


def score_name(task: str, metric: str, chosen: str) -> str:
    """Return a score's name.

    Args:
        task: The task.
        metric: The metric.
        chosen: The filter that the answer went through; lm-eval calls no filter ``none``.

    Returns:
        ``task/metric``, or ``task/metric,filter``.
    """
    return f"{task}/{metric}" if chosen == "none" else f"{task}/{metric},{chosen}"


def example_rows(name: str, task: Any, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per example and filter.

    Args:
        name: The task's name.
        task: lm-eval's task.
        samples: What lm-eval logged for it.

    Returns:
        Rows ``{task, filter, index, doc_hash, label, prediction, scores or response, metrics, text}`` in the order of
        filters and examples; ``index`` counts the task's documents and ``metrics`` holds its numbers by name.
    """
    rows = []
    for sample in samples:
        row: dict[str, Any] = {key: sample.get(key) for key in ("filter", "doc_hash")}
        found = {key: number(sample[key]) for key in sample["metrics"]}
        choices = _choices(task, sample)
        if choices is None:
            row |= {"label": _plain(sample["target"]), "prediction": _plain(_first(sample["filtered_resps"]))}
            row["response"] = _plain(_first(_first(sample["resps"])))
        else:
            row |= {"label": _gold(sample["target"], choices), "prediction": _chosen("acc", sample, choices)}
            row["scores"] = [float(answer[0]) for answer in sample["filtered_resps"][: len(choices)]]
        row["metrics"] = {key: value for key, value in found.items() if value is not None}
        row["text"] = cut_text(str(_question(task, sample)))
        rows.append({"task": name, "index": int(sample["doc_id"])} | row)
    return sorted(rows, key=lambda row: (str(row["filter"]), row["index"]))


def primary_rows(
    primary: tuple[str, str, str], task: Any, samples: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], ...]:
    """Return the rows of ``predictions.jsonl`` for the score that decides.

    Args:
        primary: Task, metric and filter.
        task: lm-eval's task.
        samples: What lm-eval logged for it.

    Returns:
        Rows ``{index, label, prediction, correct, text}`` in the order of the examples; ``score`` in place of
        ``correct`` where the metric is not 0 or 1 throughout.
    """
    _, metric, chosen = primary
    mine = sorted((s for s in samples if s["filter"] == chosen), key=lambda sample: sample["doc_id"])
    values = [number(sample.get(metric)) for sample in mine]
    binary = all(value in (0, 1) for value in values)
    rows = []
    for sample, row, value in zip(mine, example_rows(primary[0], task, mine), values, strict=True):
        choices = _choices(task, sample)
        prediction = row["prediction"] if choices is None else _chosen(metric, sample, choices)
        judged = {"correct": value == 1} if binary else {"score": value}
        kept = {key: row[key] for key in ("index", "label")}
        rows.append(kept | {"prediction": prediction} | judged | {"text": row["text"]})
    return tuple(rows)


def number(value: Any) -> float | None:
    """Return a finite number as a float, anything else as ``None``.

    Args:
        value: What lm-eval computed.

    Returns:
        The number.
    """
    if isinstance(value, bool | numbers.Real) and math.isfinite(float(value)):
        return float(value)
    # numpy's booleans are no numbers to Python.
    return float(value) if type(value).__name__ in ("bool", "bool_") else None


def _choices(task: Any, sample: Mapping[str, Any]) -> list[str] | None:
    """Return the answers that were compared; ``None`` where the task is of another kind."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    return [str(choice) for choice in task.doc_to_choice(sample["doc"])]


def _question(task: Any, sample: Mapping[str, Any]) -> Any:
    """Return the question without its solved examples; a task may keep it in an unusual place."""
    text = task.doc_to_text(sample["doc"])
    return text if isinstance(text, str) else _first(_first(sample["arguments"]))


def _gold(target: Any, choices: Sequence[str]) -> Any:
    if isinstance(target, list | tuple):
        return [_gold(one, choices) for one in target]
    if isinstance(target, int) and not isinstance(target, bool):
        return choices[target] if 0 <= target < len(choices) else None
    return _plain(target)


def _chosen(metric: str, sample: Mapping[str, Any], choices: Sequence[str]) -> str:
    """Return the answer that lm-eval took for a metric: the likeliest, or the likeliest for its length."""
    found = [float(answer[0]) for answer in sample["filtered_resps"]]
    scores = found[: len(choices)]
    if metric == "acc_norm":
        scores = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
    elif metric == "acc_bytes":
        scores = [score / len(choice.encode()) for score, choice in zip(scores, choices, strict=True)]
    elif metric == "acc_mutual_info" and len(found) == 2 * len(choices):
        scores = [score - alone for score, alone in zip(scores, found[len(choices) :], strict=True)]
    return choices[scores.index(max(scores))]


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else value


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | bool | int) else number(value) or str(value)
