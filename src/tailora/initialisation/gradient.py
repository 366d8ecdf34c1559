"""A along the directions in which the loss falls fastest: the calibration gradient's right singular vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tailora.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from tailora.profiles import Profile
    from tailora.signals.statistics.mean_gradient import MeanGradient

KINDS = ("linear", "conv1d")
"""Kinds of target whose ``A`` maps inputs in a plain matrix product."""


def rows(profile: Profile, ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the leading rows of every ``A``.

    With ``B = 0`` the gradient in ``B`` is ``scale * G A^T``.  With orthonormal rows of ``A`` the first step of
    gradient descent on ``B`` is the descent step ``-G`` projected on their span, which is the best approximation of
    rank r of that step (Eckart and Young 1936) where the rows are the leading right singular vectors of ``G``, the mean
    gradient of the base weight over the calibration examples.  LoRA-GA (arXiv 2407.05000) starts ``A`` there as well
    and ``B`` along left singular vectors, which changes the base; here the base stays as it is.

    Rows have the norm ``sqrt(1/3)`` that peft's Kaiming-uniform rows have on average, so that the same learning rates
    fit; the sign makes the entry of largest absolute value positive.

    Args:
        profile: A profile with sums (``keep_sums=True``) that holds a spectrum of the mean gradient.
        ranks: Target name to rank; those of rank 0 are passed over.

    Returns:
        Target name to float64 ``[k, in]``; ``k`` is the rank, or less where the gradient (or its sketch, of which half
        the width is read) has fewer directions.  Targets whose gradient is zero are left out.

    Raises:
        UserError: The profile has no such sums, lacks a target, or a target is an embedding or a stack of experts.
    """
    import torch

    gradient = _mean_gradient(profile)
    places = {target.name: place for place, target in enumerate(profile.targets)}
    found: dict[str, Tensor] = {}
    for name, rank in ranks.items():
        if not rank:
            continue
        if name not in places:
            raise UserError(f"the profile lacks the target {name!r}, which starts from its gradient; profile again")
        place = places[name]
        kind = profile.targets[place].kind
        if kind not in KINDS:
            raise UserError(
                f"target {name!r} is of the kind {kind!r}, and only linear layers can start from the gradient; "
                "exclude it from the placement, or use initialisation 'default'"
            )
        if gradient.sketched(place):
            factors = gradient.approximate(place)
            if factors is None:
                continue
            _, values, right = (factor[..., : gradient.width // 2] for factor in factors)
        else:
            mean = gradient.mean(place)
            if mean is None:
                continue
            _, values, transposed = torch.linalg.svd(mean[0].double().cpu(), full_matrices=False)
            right = transposed.T
        # Directions below the rounding of the gradient itself are arbitrary: peft's own rows are as good.
        kept = min(rank, int((values > 1e-6 * values[0]).sum()))
        if kept:
            found[name] = _signed(right[:, :kept].T) / 3**0.5
    return found


def _mean_gradient(profile: Profile) -> MeanGradient:
    """Return the mean gradient that a profile's sums hold."""
    from tailora.signals import SIGNALS
    from tailora.signals.base import load_sums
    from tailora.signals.reading import statistics_for
    from tailora.signals.statistics.mean_gradient import MeanGradient

    if profile.sums is None:
        raise UserError(
            "starting from the gradient needs a profile that keeps its directions; profile with keep_sums=True "
            "(tailora profile --keep-sums, read with tailora.profile_merging.load_with_sums)"
        )
    names = [name for name in profile.signals if name in SIGNALS]
    seed, options = int(profile.meta.get("seed", 0)), profile.meta.get("options") or {}
    _, statistics = statistics_for(None, profile.targets, names, seed, options)
    gradient = statistics.get(MeanGradient)
    try:
        if not isinstance(gradient, MeanGradient):
            raise KeyError(MeanGradient.__name__)
        load_sums({MeanGradient: gradient}, profile.sums)
    except KeyError:
        raise UserError(
            f"the profile holds {', '.join(profile.signals)}, none of which is read from the mean gradient; profile "
            "with 'gradient_spectrum'"
        ) from None
    return gradient


def _signed(vectors: Tensor) -> Tensor:
    """Return rows whose entry of largest absolute value is positive."""
    largest = vectors.abs().argmax(dim=1, keepdim=True)
    return vectors * vectors.gather(1, largest).sign()
