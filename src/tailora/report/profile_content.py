"""What a profile's page shows: every signal that has one entry per target, and what had to be left out."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tailora.profiles import Profile
from tailora.report import formats


@dataclass(frozen=True)
class SignalView:
    """One signal in the form in which it can be drawn.

    Attributes:
        name: Name of the signal.
        values: One finite number per target name; of a spectrum its energy, the sum of squares.
        spectra: Target name to its values ``[k]``; empty for a signal of one number per target.
        energy: Whether ``values`` are energies.
        missing: Targets without a finite number.
    """

    name: str
    values: dict[str, float]
    spectra: dict[str, np.ndarray] = field(default_factory=dict)
    energy: bool = False
    missing: int = 0

    @property
    def title(self) -> str:
        """Name in words."""
        return self.name.replace("_", " ")

    @property
    def quantity(self) -> str:
        """What the numbers are, in words."""
        return f"energy of the {self.title}" if self.energy else self.title

    @property
    def largest(self) -> str:
        """Name of the target with the largest number; empty without any."""
        return max(self.values, key=self.values.__getitem__, default="")


@dataclass(frozen=True)
class ProfileContent:
    """A profile made ready to be shown.

    Attributes:
        targets: The targets as dicts, in the model's order.
        signals: What can be drawn, by name.
        skipped: One sentence per array that cannot.
        meta: How it was measured.
    """

    targets: list[dict[str, Any]]
    signals: list[SignalView]
    skipped: list[str]
    meta: Mapping[str, Any]

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
        for name, raw in sorted(profile.signals.items()):
            values = np.asarray(raw, dtype=np.float64)
            if values.ndim == 0 or len(values) != len(names) or not values.size:
                shape = " × ".join(map(str, values.shape)) or "a single number"
                skipped.append(f"{name} ({shape}) has no entry for each of the {len(names)} targets and is not drawn.")
                continue
            signals.append(_view(name, names, values))
        return cls([target.to_dict() for target in profile.targets], signals, skipped, profile.meta)

    @property
    def title(self) -> str:
        """Heading of the page."""
        model = self.meta.get("model_class") or self.meta.get("model_type")
        return f"Tailora profile: {model}" if model else "Tailora profile"

    @property
    def summary(self) -> str:
        """What was measured on what, in a sentence or two."""
        text = f"{formats.plural(len(self.signals), 'signal')} of {formats.plural(len(self.targets), 'target')}"
        examples, batches = (self.meta.get(key) for key in ("examples", "batches"))
        if isinstance(examples, int):
            text += f", measured on {formats.plural(examples, 'example')}"
            text += f" in {formats.plural(batches, 'batch').replace('batchs', 'batches')}" if batches else ""
        text += f", loss {self.meta['loss']}" if self.meta.get("loss") else ""
        text += f" ({self.meta['loss_reduction']})" if self.meta.get("loss_reduction") else ""
        return f"{text}. No adapter was trained: this is what plans are made from."


def _view(name: str, names: list[str], values: np.ndarray) -> SignalView:
    """Turn an array whose first axis is in target order into what can be drawn."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    flat = values.reshape(len(values), -1)
    numbers = values if values.ndim == 1 else (flat**2).sum(axis=1)
    known = {target: float(value) for target, value in zip(names, numbers, strict=True) if np.isfinite(value)}
    spectra = dict(zip(names, values, strict=True)) if values.ndim == 2 else {}
    return SignalView(
        name,
        known,
        {target: row for target, row in spectra.items() if target in known},
        energy=values.ndim > 1,
        missing=len(names) - len(known),
    )


def signals_csv(content: ProfileContent) -> str:
    """Render one number per target and signal as CSV, in full precision.

    Args:
        content: What the page shows.

    Returns:
        CSV text with a heading line; an unknown number is an empty field.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    heads = [f"{signal.name}_energy" if signal.energy else signal.name for signal in content.signals]
    writer.writerow(["target", "role", "stack", "depth", "shape", *heads])
    for target in content.targets:
        shape = "x".join(map(str, target["shape"]))
        depth = "" if target["depth"] is None else target["depth"]
        cells = [signal.values.get(target["name"], "") for signal in content.signals]
        writer.writerow([target["name"], target["role"], target["stack"], depth, shape, *cells])
    return stream.getvalue()
