"""Explicit ranks from a file or a mapping, for plans made elsewhere or by hand."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from tailora.allocation.problem import Problem
from tailora.artifacts import read_json
from tailora.errors import UserError, did_you_mean
from tailora.yaml_files import read_yaml


def read_ranks(source: Any) -> dict[str, int]:
    """Read a mapping of target names (or shell-style patterns) to ranks.

    Args:
        source: A mapping, or the path of a YAML or JSON file that holds one (a saved plan too).

    Returns:
        Name or pattern to rank, in the file's order.

    Raises:
        UserError: It cannot be read, or a rank is not a whole number of at least 0.
    """
    loaded = _read_file(Path(source)) if isinstance(source, str | Path) else source
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError("explicit ranks must map target names to ranks, as in 'model.layers.0.mlp.up_proj: 8'")
    for name, rank in loaded.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
            raise UserError(f"the explicit rank of {str(name)!r} is {rank!r}; it must be a whole number of at least 0")
    return {str(name): int(rank) for name, rank in loaded.items()}


def _read_file(path: Path) -> Any:
    """Read a ranks file, or the ranks out of a saved plan."""
    # A plan of thousands of targets takes a YAML reader seconds.
    loaded = (
        read_json(path, "ranks file") if path.suffix.lower() == ".json" else read_yaml(path, "ranks file", "name: 8")
    )
    if not (isinstance(loaded, Mapping) and "targets" in loaded and "format" in loaded):
        return loaded
    try:
        return {entry["name"]: entry["rank"] for entry in loaded["targets"]}
    except (KeyError, TypeError):
        raise UserError(
            f"ranks file {str(path)!r} is a plan in which a target has no name or no rank; plan again, or write lines "
            "'name: rank'"
        ) from None


def explicit_ranks(problem: Problem) -> np.ndarray:
    """Return the ranks that the option ``ranks`` asks for; targets it does not name get 0, the last match wins.

    Args:
        problem: The allocation problem; option ``ranks`` (mapping or path).

    Returns:
        int64 ``[n_targets]``.

    Raises:
        UserError: A name matches no target, or a rank is above what its matrix can hold.
    """
    if "ranks" not in problem.options:
        raise UserError("allocation 'explicit' needs the option 'ranks': a file or a mapping of target names to ranks")
    wanted = read_ranks(problem.options["ranks"])
    names = [target.name for target in problem.targets]
    ranks = np.zeros(len(names), dtype=np.int64)
    for pattern, rank in wanted.items():
        hits = [i for i, name in enumerate(names) if name == pattern or fnmatchcase(name, pattern)]
        if not hits and rank:
            raise UserError(
                f"explicit rank {rank} is for {pattern!r}, which is no candidate target{did_you_mean(pattern, names)}"
                if did_you_mean(pattern, names)
                else f"explicit rank {rank} is for {pattern!r}, which is no candidate target; see 'tailora inspect'"
            )
        for index in hits:
            if rank > problem.targets[index].max_rank:
                raise UserError(
                    f"explicit rank {rank} of {names[index]!r} is above {problem.targets[index].max_rank}, the smaller "
                    "side of its matrix; lower it"
                )
            ranks[index] = rank
    if not ranks.any():
        raise UserError("explicit ranks are all zero, which adapts nothing; give at least one target a rank")
    return ranks


def explicit(problem: Problem) -> np.ndarray:
    """Return gains equal to cost up to each target's explicit rank and zero above, so that nothing else is taken.

    Args:
        problem: The allocation problem; option ``ranks``.

    Returns:
        float64 ``[n_targets, r_max]``.
    """
    ranks = explicit_ranks(problem)
    within = np.arange(problem.r_max)[None, :] < ranks[:, None]
    return np.where(within, problem.unit_costs, 0).astype(np.float64)
