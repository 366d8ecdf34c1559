"""Several recipes and seeds of one configuration, in one process: the base model and the profile are shared.

    python examples/compare_recipes.py examples/sst2_minilm.yaml --recipes lora,fish-lora,fish-lora-random --seeds 0,1,2
    tailora report runs -o report.html

Finished runs are kept, so the command can be repeated and extended; further arguments (``budget=r=4``) override the
configuration, as on the command line of ``tailora train``.
"""

from __future__ import annotations

import argparse

from tailora.config import load_config
from tailora.runs import execute, load_base


def main() -> None:
    """Run what is missing and print one line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file")
    parser.add_argument("--recipes", default="lora,fish-lora", help="names or files, joined by commas")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="joined by commas")
    parser.add_argument("overrides", nargs="*", help="such as budget=r=4 training.learning_rate=1e-3")
    given = parser.parse_intermixed_args()
    base = None
    for seed in given.seeds.split(","):
        for recipe in given.recipes.split(","):
            config = load_config(given.config, [*given.overrides, f"recipe={recipe}", f"seed={seed}"])
            base = base or load_base(config)
            folder = execute(config, base=base)
            print(f"{recipe}, seed {seed}: {folder}", flush=True)


if __name__ == "__main__":
    main()
