"""How much of GeLoRA's ranks is noise of the estimator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from tailora.allocation.gelora import block_ranks
from tailora.targets import Target


@dataclass(frozen=True, slots=True)
class BlockReport:
    """One block's dimensions and rank.

    Attributes:
        stack: Its tower.
        depth: Its index there.
        before: Dimension of its input.
        after: Dimension of its output.
        before_interval: 95 % interval of the input's dimension.
        after_interval: 95 % interval of the output's dimension.
        rise_interval: 95 % interval of the difference, from the same rows at both ends.
        halves: Means of the replicates, input and output: far from the estimates where the dimension depends on how
            many rows there are (near-duplicates, curvature, boundaries).
        rank: The rule's rank.
        within_noise: Whether the rank is above 1 although the interval of the rise reaches zero.
    """

    stack: str
    depth: int
    before: float
    after: float
    before_interval: tuple[float, float]
    after_interval: tuple[float, float]
    rise_interval: tuple[float, float]
    halves: tuple[float, float]
    rank: int
    within_noise: bool


@dataclass(frozen=True, slots=True)
class GeloraReport:
    """All blocks, and what to say about them.

    Attributes:
        blocks: One entry a block, in the order of the targets.
        warning: One sentence when ranks above 1 are within the estimator's noise; empty otherwise.
        scale_warning: One sentence when dimensions on half of the rows lie outside of the intervals; empty otherwise.
    """

    blocks: tuple[BlockReport, ...]
    warning: str
    scale_warning: str


def gelora_report(targets: Sequence[Target], signal: np.ndarray, *, rounding: str = "round") -> GeloraReport:
    """Compare the blocks' rises of dimension with the noise of the estimator.

    An interval is the estimate plus and minus Student's 97.5 % quantile times the spread of the replicates.  Both
    ends of a block are estimated on the same rows, so the rise has an interval of its own, narrower than the two ends'
    would make it.  Without replicates (fewer than two) every interval is unbounded and every rise within noise.

    Args:
        targets: The targets.
        signal: float64 ``[n_targets, 2, 1 + B]``, as ``intrinsic_dimension`` is measured.
        rounding: As the allocator's option.

    Returns:
        The blocks and a warning.

    Raises:
        UserError: The signal has another shape, or a block has no dimension.
    """
    ranks = block_ranks(targets, np.asarray(signal, dtype=np.float64), rounding=rounding)
    values: dict[tuple[str, int], np.ndarray] = {}
    for target, row in zip(targets, signal, strict=True):
        if target.depth is not None:
            values.setdefault((target.stack, target.depth), np.asarray(row, dtype=np.float64))
    blocks = tuple(_block(key, values[key], rank) for key, rank in ranks.items())
    raised = [block for block in blocks if block.rank > 1]
    noisy = [block for block in raised if block.within_noise]
    return GeloraReport(blocks, _warning(len(blocks), len(raised), noisy), _scale_warning(blocks))


def _block(key: tuple[str, int], values: np.ndarray, rank: int) -> BlockReport:
    """Describe one block; ``values`` is ``[2, 1 + B]``."""
    before, after = float(values[0, 0]), float(values[1, 0])
    rise = _interval(after - before, values[1, 1:] - values[0, 1:])
    return BlockReport(
        stack=key[0],
        depth=key[1],
        before=before,
        after=after,
        before_interval=_interval(before, values[0, 1:]),
        after_interval=_interval(after, values[1, 1:]),
        rise_interval=rise,
        halves=(_mean(values[0, 1:]), _mean(values[1, 1:])),
        rank=rank,
        within_noise=rank > 1 and rise[0] <= 0,
    )


def _interval(value: float, replicates: np.ndarray) -> tuple[float, float]:
    """Return a 95 % interval around an estimate from the spread of its replicates on halves of the rows."""
    held = replicates[np.isfinite(replicates)]
    if len(held) < 2:
        return -np.inf, np.inf
    width = float(student(len(held) - 1) * held.std(ddof=1))
    return value - width, value + width


def student(freedom: int) -> float:
    """Return the 97.5 % point of Student's t distribution.

    Abramowitz and Stegun 1964, 26.7.5, from seven degrees of freedom on (below 1e-4 of the value); fewer, which only
    very small profiles have, are left to scipy, whose import takes longer than the rest of a plan.

    Args:
        freedom: Degrees of freedom, at least 1.

    Returns:
        The quantile.
    """
    if freedom < 7:
        from scipy.special import stdtrit

        return float(stdtrit(freedom, 0.975))
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def _mean(replicates: np.ndarray) -> float:
    """Return the mean of the finite replicates, NaN without any."""
    held = replicates[np.isfinite(replicates)]
    return float(held.mean()) if len(held) else float("nan")


def _scale_warning(blocks: Sequence[BlockReport]) -> str:
    """Return the sentence on dimensions that change with the number of rows."""
    ends = [
        low <= half <= high
        for block in blocks
        for (low, high), half in zip((block.before_interval, block.after_interval), block.halves, strict=True)
        if np.isfinite(half)
    ]
    moved = len(ends) - sum(ends)
    if not moved:
        return ""
    return (
        f"the dimension at {moved} of the {len(ends)} block ends is another on half of the examples, by more than the "
        "noise: near-duplicates or curvature decide it; leave out near-duplicate examples or compare a larger profile"
    )


def _warning(blocks: int, raised: int, noisy: Sequence[BlockReport]) -> str:
    """Return the sentence."""
    if not noisy:
        return ""
    named = ", ".join(f"{block.stack} {block.depth}".strip() for block in noisy[:8])
    more = f" and {len(noisy) - 8} more" if len(noisy) > 8 else ""
    return (
        f"{len(noisy)} of the {raised} blocks (of {blocks}) that GeLoRA gives a rank above 1 rise by no more than the "
        f"noise of the estimator (depth {named}{more}); profile more examples, or compare with the option permute and "
        "with uniform ranks at the same cost"
    )
