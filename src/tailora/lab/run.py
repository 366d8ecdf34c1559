"""A laboratory run: many problems over worker processes, one atomic record each, continued where it stopped."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tailora.artifacts import check_writable, read_json, write_json
from tailora.budget import Budget
from tailora.errors import UserError
from tailora.lab.families import FAMILIES
from tailora.lab.solve import FORMAT, Settings, record_key, solve
from tailora.lab.spec import ProblemSpec

Told = Callable[[ProblemSpec, int, int], None]
"""Called with a finished problem, how many are finished and how many there are."""


def problems_of(families: Sequence[str], seeds: Sequence[int]) -> list[ProblemSpec]:
    """Return the problems of families and seeds, the families in turn.

    Args:
        families: Registered names.
        seeds: Seeds.

    Returns:
        Descriptions; stopped half-way, every family has about as many.
    """
    return [FAMILIES[family](seed) for seed in seeds for family in families]


def record_path(folder: Path, spec: ProblemSpec, settings: Settings) -> Path:
    """Return where a problem's record belongs."""
    return folder / "records" / f"{spec.family}-{spec.seed}-{record_key(spec, settings)[:12]}.json"


def run_lab(
    problems: Sequence[ProblemSpec],
    settings: Settings,
    folder: str | Path,
    *,
    workers: int | None = None,
    told: Told | None = None,
) -> list[dict[str, Any]]:
    """Solve problems and keep a record of each.

    Args:
        problems: The problems.
        settings: Who competes, and how.
        folder: Where records go; those already there are not made again.
        workers: Processes of one thread each; as many as there are processors where left out.
        told: Called after each problem.

    Returns:
        All records, in the order of the problems.

    Raises:
        UserError: The folder cannot be written to, or a contestant cannot be read.
    """
    from tailora.lab.contestants import ORACLE, read_contestant

    folder = Path(folder)
    check_writable(folder)
    for name in settings.everybody:
        if name != ORACLE:
            read_contestant(name)
    Budget.parse(settings.budget)
    paths = [record_path(folder, spec, settings) for spec in problems]
    records = {path: _kept(path) for path in paths}
    todo = [(spec, path) for spec, path in zip(problems, paths, strict=True) if records[path] is None]
    finished = len(problems) - len(todo)
    count = min(workers or _processors(), len(todo))
    if count == 1:
        for spec, path in todo:
            records[path] = _solve_to(spec, settings, path)
            finished += 1
            if told is not None:
                told(spec, finished, len(problems))
    elif count:
        # Fresh processes: a forked copy of a process that has used torch may hang in its thread pool.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, mp_context=context, initializer=_one_thread) as pool:
            futures = {pool.submit(_solve_to, spec, settings, path): (spec, path) for spec, path in todo}
            try:
                for future in as_completed(futures):
                    spec, path = futures[future]
                    records[path] = future.result()
                    finished += 1
                    if told is not None:
                        told(spec, finished, len(problems))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [records[path] for path in paths]  # pyright: ignore[reportReturnType]


def _processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_thread() -> None:
    """Keep a worker to one thread: problems are many and small."""
    import torch

    torch.set_num_threads(1)


def _solve_to(spec: ProblemSpec, settings: Settings, path: Path) -> dict[str, Any]:
    """Solve a problem and write its record."""
    record = solve(spec, settings)
    write_json(path, record)
    return record


def _kept(path: Path) -> dict[str, Any] | None:
    """Return a finished record, ``None`` where there is none."""
    if not path.is_file():
        return None
    record = read_json(path, "record of the laboratory")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{str(path)!r} is no record of format {FORMAT!r}; delete it, or choose another folder")
    return record
