"""Scoring a model in memory on lm-eval's tasks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailora.artifacts import canonical_json, write_json
from tailora.config import RunConfig
from tailora.config_files import world_size
from tailora.config_harness import HarnessConfig
from tailora.errors import ConfigError
from tailora.evaluation import Evaluation
from tailora.harness.language_model import lent
from tailora.harness.quiet import quietly, seeded
from tailora.harness.rows import example_rows, number, primary_rows, score_name
from tailora.harness.tasks import check_installed, loaded
from tailora.progress import Progress

_KINDS = ("causal-lm", "multiple-choice")


@dataclass(frozen=True)
class Measured:
    """What lm-eval found.

    Attributes:
        scores: Score by name, such as ``arc_easy/acc_norm`` or ``gsm8k/exact_match,strict-match``.
        rows: One row per task, filter and example.
        primary: Name of the score that decides; empty where the task's own does.
        records: The rows of ``predictions.jsonl`` where ``primary`` is given.
        facts: lm-eval's version, each task's version, number of solved examples and questions, and warnings.
    """

    scores: Mapping[str, float]
    rows: tuple[dict[str, Any], ...]
    primary: str
    records: tuple[dict[str, Any], ...]
    facts: Mapping[str, Any]

    def joined(self, scored: Evaluation) -> Evaluation:
        """Return the evaluation on the task's own data with these scores beside, or in front.

        Args:
            scored: The evaluation on the task's own data; its loss stays.

        Returns:
            Its scores and these; with ``primary``, the examples and records are those of lm-eval.
        """
        metrics = {**scored.metrics, **self.scores}
        if not self.primary:
            # The score that decided before still does: it may have been implied.
            return dataclasses.replace(scored, metrics=metrics)
        return dataclasses.replace(
            scored, metrics=metrics, primary=self.primary, examples=len(self.records), records=self.records
        )

    def write(self, folder: Path) -> None:
        """Write ``harness.jsonl`` and ``harness.json``.

        Args:
            folder: The run's folder.
        """
        from tailora.training import write_rows

        write_rows(folder / "harness.jsonl", self.rows)
        write_json(folder / "harness.json", dict(self.facts))


def check_harness(config: RunConfig) -> None:
    """Refuse what lm-eval could not do after the training, before it begins; nothing is done without the section.

    The tasks and their data are loaded once per process.

    Args:
        config: The run's configuration.

    Raises:
        ConfigError: lm-eval is missing, several processes train, or the tasks or their settings are wrong.
    """
    if (section := config.harness) is None:
        return
    if (processes := world_size()) > 1:
        raise ConfigError(
            f"harness scores in one process, but {processes} are at work; leave the section out and score the adapter "
            "afterwards with 'tailora eval RUN --harness TASKS'"
        )
    if config.task.kind not in _KINDS:
        raise ConfigError(
            f"harness scores causal language models, but task.kind is {config.task.kind!r}; leave harness out, or take "
            f"one of {', '.join(_KINDS)}"
        )
    check_installed()
    _longest(section.model_dump_json(), canonical_json(section.facts()))


def check_fit(config: RunConfig, model: Any, tokenizer: Any) -> None:
    """Refuse settings that do not fit the model.

    Args:
        config: The run's configuration.
        model: The base model.
        tokenizer: Its tokenizer.

    Raises:
        ConfigError: There is no chat template, or no room for the answers.
    """
    if (section := config.harness) is None:
        return
    if section.apply_chat_template and not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"harness.apply_chat_template is true, but the tokenizer of model {config.model!r} has no chat template; "
            "leave it out"
        )
    longest = _longest(section.model_dump_json(), canonical_json(section.facts()))
    with quietly(), lent(model, tokenizer, batch_size=1) as wrapped:
        room = wrapped.max_length
    if longest is not None and longest >= room:
        raise ConfigError(
            f"harness tasks ask for answers of up to {longest} tokens, but model {config.model!r} has room for {room} "
            "with the question; give a smaller harness.max_gen_toks"
        )


@functools.lru_cache(maxsize=16)
def _longest(section: str, contents: str) -> int | None:
    # ``contents`` is only a cache key: files that changed are checked again.
    with quietly(), seeded(), loaded(HarnessConfig.model_validate_json(section)) as tasks:
        return tasks.longest


def measure(config: RunConfig, model: Any, tokenizer: Any, *, progress: Progress | None = None) -> Measured:
    """Score a model on the tasks of a configuration's ``harness`` section.

    Modes, weights and random states are as before afterwards.  The same model gives the same scores: lm-eval's seeds
    are set, and its tasks decode greedily unless they say otherwise.

    Args:
        config: The run's configuration, with a ``harness`` section.
        model: The model, on its device.
        tokenizer: Its tokenizer.
        progress: Called as ``progress("harness", done, total)``.

    Returns:
        The scores and the results by example.

    Raises:
        ConfigError: The tasks or their settings are wrong.
    """
    section = config.harness
    if section is None:
        raise ConfigError("the configuration has no section 'harness'; add one with 'tasks'")
    check_installed()
    import lm_eval

    size = section.batch_size or config.training.per_device_eval_batch_size
    with quietly() as heard, seeded(), loaded(section) as ready:
        with lent(model, tokenizer, batch_size=size, progress=progress) as wrapped:
            found: Any = lm_eval.evaluate(
                wrapped,
                dict(ready.found),
                limit=section.limit,
                # No resampling: intervals come from the rows.
                bootstrap_iters=0,
                apply_chat_template=section.apply_chat_template,
                fewshot_as_multiturn=section.apply_chat_template,
            )
        samples = found["samples"]
        rows = [row for name, task in ready.tasks.items() for row in example_rows(name, task, samples[name])]
        records: tuple[dict[str, Any], ...] = ()
        if ready.primary:
            name = ready.primary[0]
            records = primary_rows(ready.primary, ready.tasks[name], samples[name])
    return Measured(
        scores=_scores(found["results"]),
        rows=tuple(rows),
        primary=score_name(*ready.primary) if ready.primary else "",
        records=records,
        facts={
            "lm_eval": lm_eval.__version__,
            "tasks": {
                name: {
                    "version": found["versions"].get(name),
                    "num_fewshot": found["n-shot"].get(name),
                    "examples": found["n-samples"][name]["effective"],
                }
                for name in ready.tasks
            },
            "warnings": heard.messages(),
        },
    )


def _scores(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the scores of tasks and groups by name, without the standard errors, which are not computed."""
    scores: dict[str, float] = {}
    for name, values in results.items():
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")
            if comma and not metric.endswith("_stderr") and (found := number(value)) is not None:
                scores[score_name(name, metric, chosen)] = found
    return scores
