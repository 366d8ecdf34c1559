"""What a profile's page shows: every signal that has one entry per target, and what had to be left out."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tailora.profiles import Profile
from tailora.report import formats
from tailora.report.profile_dimension import DimensionView
from tailora.report.profile_measured import how_measured

SINGULAR = 1e300
"""A condition number from here on stands for a smallest singular value of zero."""


@dataclass(frozen=True)
class Reduction:
    """How the several numbers of a target become one.

    Attributes:
        suffix: What the column in ``signals.csv`` gets behind the signal's name.
        quantity: What the number is, with ``{}`` for the signal.
        short: The same in a word or two.
        note: A sentence on it.
        measure: From all numbers of a target to one; not finite where one of them is not.
    """

    suffix: str
    quantity: str
    short: str
    note: str
    measure: Callable[[np.ndarray], float]


ENERGY = Reduction(
    "energy",
    "energy of the {}",
    "energy",
    "Energy is the sum of the squared values.",
    lambda values: float((values**2).sum()),
)
KEPT_ENERGY = Reduction(
    "positive_energy",
    "positive energy of the {}",
    "positive energy",
    "Some values are negative. Energy here is the sum of the squared positive values, as plans read them.",
    lambda values: float((np.where(values < 0, 0.0, values) ** 2).sum()),
)
SHARE = Reduction(
    "largest",
    "largest share of the variance",
    "the largest share",
    "The number is the share of the variance that the first component explains.",
    lambda shares: float(shares.max()),
)


@dataclass(frozen=True)
class SignalView:
    """One signal in the form in which it can be drawn.

    Attributes:
        name: Name of the signal.
        values: One finite number per target name; of a spectrum what ``reduction`` makes of it.
        spectra: Target name to its values ``[k]``; empty for a signal of one number per target.
        reduction: How several numbers of a target became one; ``None`` where there is one.
        missing: Targets without a finite number.
        singular: Targets whose condition number is infinite.
    """

    name: str
    values: dict[str, float]
    spectra: dict[str, np.ndarray] = field(default_factory=dict)
    reduction: Reduction | None = None
    missing: int = 0
    singular: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Name in words."""
        return self.name.replace("_", " ")

    @property
    def energy(self) -> bool:
        """Whether ``values`` are energies."""
        return self.reduction in (ENERGY, KEPT_ENERGY)

    @property
    def quantity(self) -> str:
        """What the numbers are, in words."""
        return self.reduction.quantity.format(self.title) if self.reduction else self.title

    @property
    def column(self) -> str:
        """Heading in ``signals.csv``."""
        return f"{self.name}_{self.reduction.suffix}" if self.reduction else self.name

    @property
    def largest(self) -> str:
        """Name of the target with the largest number, a singular one first; empty without any."""
        return self.singular[0] if self.singular else max(self.values, key=self.values.__getitem__, default="")


@dataclass(frozen=True)
class ProfileContent:
    """A profile made ready to be shown.

    Attributes:
        targets: The targets as dicts, in the model's order.
        signals: What can be drawn, by name.
        skipped: One sentence per array that cannot.
        meta: How it was measured.
        dimension: The intrinsic dimension at both ends of every block, where it was measured.
    """

    targets: list[dict[str, Any]]
    signals: list[SignalView]
    skipped: list[str]
    meta: Mapping[str, Any]
    dimension: DimensionView | None = None

    @classmethod
    def of(cls, profile: Profile) -> ProfileContent:
        """Sort a profile's arrays into what can be drawn and what cannot.

        Args:
            profile: The profile; a signal's first axis is in target order.

        Returns:
            The content.
        """
        names = [target.name for target in profile.targets]
        signals, skipped = [], []
        dimension = None
        for name, raw in sorted(profile.signals.items()):
            values = np.asarray(raw, dtype=np.float64)
            if values.ndim == 0 or len(values) != len(names) or not values.size:
                shape = " × ".join(map(str, values.shape)) or "a single number"
                skipped.append(f"{name} ({shape}) has no entry for each of the {len(names)} targets and is not drawn.")
                continue
            if DimensionView.fits(name, values):
                dimension = DimensionView.of(profile.targets, values)
                continue
            signals.append(_view(name, names, values))
        return cls([target.to_dict() for target in profile.targets], signals, skipped, profile.meta, dimension)

    @property
    def title(self) -> str:
        """Heading of the page."""
        model = self.meta.get("model_class") or self.meta.get("model_type")
        return f"Tailora profile: {model}" if model else "Tailora profile"

    @property
    def summary(self) -> str:
        """What was measured on what, in a sentence or two."""
        count = len(self.signals) + (self.dimension is not None)
        text = f"{formats.plural(count, 'signal')} of {formats.plural(len(self.targets), 'target')}"
        return " ".join(
            [f"{text}{how_measured(self.meta)}", "No adapter was trained: this is what plans are made from."]
        )


def _view(name: str, names: list[str], values: np.ndarray) -> SignalView:
    """Turn an array whose first axis is in target order into what can be drawn."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    reduction = _reduction(name, values)
    if reduction is None:
        numbers = values
    else:
        with np.errstate(over="ignore"):
            numbers = np.array([reduction.measure(row.ravel()) for row in values])
    found = dict(zip(names, map(float, numbers), strict=True))
    # The signal writes the largest float for an infinite number, and a mean of two of them is infinite again.
    singular = [target for target, value in found.items() if name == "condition_number" and value >= SINGULAR]
    known = {target: value for target, value in found.items() if np.isfinite(value) and target not in singular}
    spectra = dict(zip(names, values, strict=True)) if values.ndim == 2 else {}
    return SignalView(
        name,
        known,
        {target: row for target, row in spectra.items() if np.isfinite(row).all()},
        reduction,
        missing=len(names) - len(known) - len(singular),
        singular=tuple(singular),
    )


def _reduction(name: str, values: np.ndarray) -> Reduction | None:
    """Return how several numbers of a target become one."""
    if values.ndim == 1:
        return None
    if (values < 0).any():
        return KEPT_ENERGY
    return SHARE if name == "explained_variance" and values.ndim == 2 else ENERGY


def signals_csv(content: ProfileContent) -> str:
    """Render one number per target and signal as CSV, in full precision.

    Args:
        content: What the page shows.

    Returns:
        CSV text with a heading line; an unknown number is an empty field, the condition number of a singular weight
        ``inf``; the intrinsic dimension has two columns, of the input and of the output of the target's block.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    heads = [signal.column for signal in content.signals]
    heads += ["intrinsic_dimension_in", "intrinsic_dimension_out"] if content.dimension else []
    writer.writerow(["target", "role", "stack", "depth", "shape", *heads])
    for target in content.targets:
        name, shape = target["name"], "x".join(map(str, target["shape"]))
        depth = "" if target["depth"] is None else target["depth"]
        cells = ["inf" if name in signal.singular else signal.values.get(name, "") for signal in content.signals]
        cells += content.dimension.ends_of(name) if content.dimension else []
        writer.writerow([name, target["role"], target["stack"], depth, shape, *cells])
    return stream.getvalue()
