"""The standard families of planted problems: one seed is one problem."""

from __future__ import annotations

from collections.abc import Callable

from tailora.lab.spec import Planting, ProblemSpec, Shape
from tailora.registry import Registry

Family = Callable[[int], ProblemSpec]
"""From a seed to a problem."""

FAMILIES: Registry[Family] = Registry("family of planted problems")

STANDARD = ("sparse", "power-law", "correlated", "roles")
"""The families of the standard lab, over which allocators are compared."""


def _family(name: str, summary: str, **fields: object) -> None:
    FAMILIES.add(name, lambda seed: ProblemSpec(family=name, seed=seed, **fields), summary=summary)  # type: ignore[arg-type]


_family("sparse", "a quarter of the matrices, anywhere, with ranks drawn from 2 to 12 and a flat spectrum")
_family(
    "power-law",
    "two fifths of the matrices, ranks 12, 7, 5, 4, 3, ... in a random order, stronger where the rank is larger",
    planting=Planting(law="power", share=0.4, high=12, exponent=0.8, size=0.8, by_rank=True),
)
_family(
    "correlated",
    "a third of the matrices, where a walk along the depth of each role is high: neighbours are planted together",
    planting=Planting(law="correlated", share=0.33, low=1, high=10, memory=0.95, decay=0.25),
)
_family(
    "roles",
    "all matrices of two roles that are drawn, with ranks drawn from 2 to 8",
    planting=Planting(placement="{roles:2}", share=1.0, low=2, high=8, size=0.5, decay=0.25),
)
_family(
    "depth",
    "all matrices of one neighbourhood of two layers, with ranks drawn from 1 to 6; not in the standard lab",
    planting=Planting(placement="{layers:2}", share=1.0, low=1, high=6, size=0.4),
)
_family(
    "everything",
    "the same rank on every matrix, its size in proportion to its cost: uniform is right and nothing can be gained",
    planting=Planting(law="same", share=1.0, high=6, size=0.3, by_cost=True),
)
_family(
    "labels",
    "as sparse, learned from sampled tokens of which a tenth are random; not in the standard lab",
    labels="sampled",
    noise=0.1,
)
_family("few-data", "as sparse, learned from 256 sequences; not in the standard lab", sequences=256)
_family("gpt2", "as sparse, on GPT-2's architecture; not in the standard lab", architecture="gpt2")
_family("bert", "as sparse, on BERT's architecture; not in the standard lab", architecture="bert")
_family(
    "t5",
    "as sparse, on T5's architecture with two blocks a side; not in the standard lab",
    architecture="t5",
    shape=Shape(layers=2),
)
