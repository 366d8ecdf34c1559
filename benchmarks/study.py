"""Studies: what a study costs beside the training and the evaluation of its runs.

Run: python benchmarks/study.py [--steps 150] [--runs 8]

The study runs in a process of its own, as people start it, from the first import to the written report; its wall time
is divided by the sum of the training and evaluation seconds that its runs report.  Without shared/data and
shared/models (set TAILORA_TEST_DATA) there is nothing to run on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def study(folder: Path, shared: Path, steps: int, runs: int) -> Path:
    """Write the study: two recipes on a small language model, as many seeds as it takes."""
    values = {
        "base": {
            "model": str(shared / "models" / "stories260k"),
            "task": {
                "kind": "causal-lm",
                "train": str(shared / "data" / "text" / "tinyshakespeare.txt"),
                "max_length": 128,
                "train_examples": 2400,
                "eval_examples": 128,
            },
            "training": {"max_steps": steps, "use_cpu": True},
        },
        "recipes": ["lora", "spectral"],
        "budgets": ["r=2"],
        "seeds": max(1, runs // 2),
        "learning_rate": 0.01,
        "output": "out",
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
    return path


def main() -> None:
    """Print the ratio and its parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--runs", type=int, default=8)
    given = parser.parse_args()
    shared = Path(os.environ.get("TAILORA_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared").resolve()
    with tempfile.TemporaryDirectory() as temporary:
        path = study(Path(temporary), shared, given.steps, given.runs)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tailora", "study", str(path)], check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        found = [json.loads(file.read_text()) for file in (Path(temporary) / "out" / "runs").glob("*/timings.json")]
    work, whole = sum(row["train_s"] + row["evaluate_s"] for row in found), sum(row["total_s"] for row in found)
    print(f"{len(found)} runs of {given.steps} steps: training and evaluation {work:.1f} s, in runs {whole:.1f} s")
    print(f"the study {wall:.1f} s: {wall / work:.3f} times, {wall - whole:.1f} s outside its runs")


if __name__ == "__main__":
    main()
