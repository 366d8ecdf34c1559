"""Finding and loading lm-eval's tasks, and what can be wrong with them before any model is touched."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailora.config_harness import HarnessConfig
from tailora.errors import ConfigError, did_you_mean, unknown_name
from tailora.harness.quiet import SEEDS
from tailora.harness_files import LocalTasks, local_tasks

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

GENERATED = "generate_until"
"""lm-eval's name for tasks whose answer is written by the model."""


@dataclass(frozen=True)
class Loaded:
    """Tasks that are ready to be asked.

    Attributes:
        found: What lm-eval's ``TaskManager.load`` returned: tasks and groups.
        primary: Task, metric and filter of the score that decides; ``None`` where the task's own decides.
    """

    found: Mapping[str, Any]
    primary: tuple[str, str, str] | None

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The tasks by name, those of groups included."""
        return self.found["tasks"]

    @property
    def longest(self) -> int | None:
        """The longest answer that any task asks for, in tokens; ``None`` where none is generated."""
        from lm_eval.models.utils import normalize_gen_kwargs

        asked = [
            int(normalize_gen_kwargs(task.config.generation_kwargs or {}).get("max_gen_toks", 0))
            for task in self.tasks.values()
            if task.OUTPUT_TYPE == GENERATED
        ]
        return max(asked, default=None)


def check_installed() -> None:
    """Refuse to go on without lm-eval.

    Raises:
        ConfigError: It is not installed.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "harness needs the package 'lm_eval', which is not installed; run \"pip install 'tailora[harness]'\", or "
            "leave harness out"
        )


@contextlib.contextmanager
def loaded(section: HarnessConfig) -> Iterator[Loaded]:
    """Load the tasks of a configuration with their data.

    Args:
        section: The configuration's section.

    Yields:
        The tasks; the files they were made of may go afterwards.

    Raises:
        ConfigError: A name is unknown, a task or its data cannot be read, or a setting does not fit the tasks.
    """
    with _folder(section) as (folder, local):
        manager = _manager(section, folder, local)
        names = ", ".join(section.tasks)
        try:
            found = manager.load(list(section.tasks))
        # A task file is code: whatever it stumbles over is in it, in its data or on the way to the hub.
        except Exception as error:
            reason = " ".join(str(error).split()) or "no reason given"
            raise ConfigError(
                f"harness.tasks={names!r} cannot be loaded ({type(error).__name__}: {reason:.300}); check the task "
                "files and their data, or the connection to the hub"
            ) from None
        _settle(section, found["tasks"])
        yield Loaded(found, _primary(section, found))


@contextlib.contextmanager
def _folder(section: HarnessConfig) -> Iterator[tuple[Path | None, LocalTasks | None]]:
    """Yield a folder with the task files, the data's place filled in."""
    if section.include_path is None:
        yield None, None
        return
    local = local_tasks(section.include_path, section.tasks, section.data_root)
    with tempfile.TemporaryDirectory(prefix="tailora-tasks-") as temporary:
        folder = Path(temporary).resolve()
        for path, text in local.texts.items():
            place = folder / path.relative_to(local.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        for path in local.files:
            if path not in local.texts:
                # A link: Python code is then known by its own place, and read once.
                (folder / path.relative_to(local.folder)).symlink_to(path)
        yield folder, local


def _manager(section: HarnessConfig, folder: Path | None, local: LocalTasks | None) -> TaskManager:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folder, include_defaults=False)
    # lm-eval's own registry takes seconds to read, so it is left alone where the folder has all that is asked for.
    if folder is not None and local is not None and not local.missing:
        return manager
    for name, entry in _registry().items():
        manager.task_index.setdefault(name, entry)
    for name in section.tasks:
        if name not in manager.task_index:
            raise _unknown(name, manager, local)
    return manager


@functools.cache
def _registry() -> Mapping[str, Any]:
    from lm_eval.tasks import TaskManager

    return TaskManager().task_index


def _unknown(name: str, manager: TaskManager, local: LocalTasks | None) -> ConfigError:
    hint = did_you_mean(name, {*manager.task_index, *(local.names if local else ())}) or ";"
    broken = ""
    if local and local.broken:
        path, reason = next(iter(local.broken.items()))
        broken = f" (one file there cannot be read: {str(path)!r}, {reason})"
    where = "lm-eval's registry" if local is None else f"{str(local.folder)!r}{broken} or lm-eval's registry"
    return ConfigError(f"harness.tasks: unknown task {name!r}{hint} it is not in {where}; 'lm-eval ls tasks' lists all")


def _settle(section: HarnessConfig, tasks: Mapping[str, Any]) -> None:
    """Apply the settings to the tasks, as lm-eval's own ``simple_evaluate`` does, and refuse what would be ignored."""
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(f"harness task {name!r} runs code that the model writes; leave it out")
        if getattr(task, "MULTIMODAL", False):
            raise ConfigError(f"harness task {name!r} needs images or sound; leave it out")
        # A task that fixes 0 is meant without examples.
        if section.num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=section.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEEDS["fewshot"])
        if section.max_gen_toks is not None and task.OUTPUT_TYPE == GENERATED:
            task.set_config(key="generation_kwargs", value={"max_gen_toks": section.max_gen_toks}, update=True)
    if section.num_fewshot and not any(task.get_config("num_fewshot") for task in tasks.values()):
        raise ConfigError(
            f"harness.num_fewshot is {section.num_fewshot}, but {', '.join(section.tasks)!r} fixes it at 0; leave it "
            "out"
        )
    if section.max_gen_toks and not any(task.OUTPUT_TYPE == GENERATED for task in tasks.values()):
        raise ConfigError(
            f"harness.max_gen_toks is {section.max_gen_toks}, but no task of {', '.join(section.tasks)!r} generates "
            "text; leave it out"
        )


def _primary(section: HarnessConfig, found: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Read ``TASK[/METRIC[,FILTER]]``; the score must be a mean over examples of which more is better."""
    if section.primary is None:
        return None
    from lm_eval.api.registry import get_aggregation

    tasks, text = found["tasks"], section.primary
    fitting = [name for name in [*tasks, *found.get("groups", {})] if text == name or text.startswith(f"{name}/")]
    name = max(fitting, key=len, default=text.partition("/")[0])
    if name not in tasks:
        if name in found.get("groups", {}):
            raise ConfigError(f"harness.primary={text!r} is a group of tasks; name one of them: {', '.join(tasks)}")
        raise unknown_name("task in harness.primary", name, tasks)
    task = tasks[name]
    metric, _, chosen = text.removeprefix(name).removeprefix("/").partition(",")
    metrics = list(task.aggregation())
    filters = [entry.name for entry in getattr(task, "_filters", ())] or ["none"]
    metric, chosen = metric or metrics[0], chosen or filters[0]
    if metric not in metrics:
        raise unknown_name(f"metric of {name} in harness.primary", metric, metrics)
    if chosen not in filters:
        raise unknown_name(f"filter of {name} in harness.primary", chosen, filters)
    if task.aggregation()[metric] is not get_aggregation("mean") or not task.higher_is_better().get(metric, True):
        raise ConfigError(
            f"harness.primary={text!r} is no mean over examples of which more is better; choose another of "
            f"{', '.join(metrics)}"
        )
    return name, metric, chosen
