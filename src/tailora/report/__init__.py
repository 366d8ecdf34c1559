"""Tables, figures and one HTML page from run folders; reads files only and never imports torch.

The names below are imported on first use, because matplotlib and scipy are slow to load and a terminal table needs
neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailora.report.compare import compare_runs as compare_runs
    from tailora.report.compare import paired_differences as paired_differences
    from tailora.report.html import write_report as write_report
    from tailora.report.runs import Problem as Problem
    from tailora.report.runs import RunRecord as RunRecord
    from tailora.report.runs import Runs as Runs
    from tailora.report.runs import load_runs as load_runs
    from tailora.report.terminal import comparison_table as comparison_table
    from tailora.report.terminal import paired_table as paired_table
    from tailora.report.terminal import rank_map as rank_map
    from tailora.report.terminal import rank_maps as rank_maps

_HOMES = {
    "Problem": "runs",
    "RunRecord": "runs",
    "Runs": "runs",
    "compare_runs": "compare",
    "comparison_table": "terminal",
    "load_runs": "runs",
    "paired_differences": "compare",
    "paired_table": "terminal",
    "rank_map": "terminal",
    "rank_maps": "terminal",
    "write_report": "html",
}

__all__ = [
    "Problem",
    "RunRecord",
    "Runs",
    "compare_runs",
    "comparison_table",
    "load_runs",
    "paired_differences",
    "paired_table",
    "rank_map",
    "rank_maps",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tailora.report' has no attribute {name!r}")
    value = getattr(import_module(f"tailora.report.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
