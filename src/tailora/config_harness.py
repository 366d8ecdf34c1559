"""The ``harness`` section of a run: which tasks of EleutherAI's lm-eval score the adapter, and how."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from tailora.config_files import fingerprint_path
from tailora.config_training import NaturalInt, PositiveInt, Section
from tailora.harness_files import local_tasks


def _names(value: Any) -> Any:
    """Accept ``a,b`` for a list of two."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class HarnessConfig(Section):
    """Evaluation with lm-eval; its own names where it has them.

    Attributes:
        tasks: Names of tasks, groups or tags: those of lm-eval, and those in ``include_path``, which come first.
        include_path: Folder with task files of your own.
        data_root: What ``${data_root}`` stands for in them; the environment variable ``TAILORA_DATA`` when left out.
        num_fewshot: Solved examples before each question; the task's own number when left out.
        limit: Use at most this many examples of each task, from the first on.
        batch_size: Sequences per forward pass; ``training.per_device_eval_batch_size`` when left out.
        max_gen_toks: Longest generated answer in tokens; the task's own when left out.
        apply_chat_template: Whether prompts go through the tokenizer's chat template.
        primary: The run's score: ``TASK``, ``TASK/METRIC`` or ``TASK/METRIC,FILTER``; the first metric and filter of
            the task where they are left out.  Without it the scores are written beside the task's own.
    """

    tasks: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_names), Field(min_length=1)]
    include_path: str | None = Field(default=None, min_length=1)
    data_root: str | None = Field(default=None, min_length=1)
    num_fewshot: NaturalInt | None = None
    limit: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    max_gen_toks: PositiveInt | None = None
    apply_chat_template: bool = False
    primary: str | None = Field(default=None, min_length=1)

    @field_validator("tasks")
    @classmethod
    def _once_each(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for name in tasks:
            if tasks.count(name) > 1:
                raise ValueError(f"task {name!r} is given twice; name it once")
        return tasks

    def facts(self) -> dict[str, Any]:
        """Return what influences the scores; task files of one's own and their data enter by content.

        Returns:
            JSON-ready values for the hash of a run.

        Raises:
            ConfigError: The folder of the task files, or that of their data, cannot be used.
        """
        facts = self.model_dump(mode="json", exclude={"include_path", "data_root"})
        if self.include_path is None:
            return facts
        local = local_tasks(self.include_path, self.tasks, self.data_root)
        files = {str(path.relative_to(local.folder)): fingerprint_path(str(path)) for path in local.files}
        # Data counts by what it holds; where it lies is no fact.
        return facts | {"files": files, "data": sorted(fingerprint_path(str(path)) for path in local.data)}
