"""The five slots of a recipe, checked when it is read."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_MOST = 2**31  # no matrix is larger, and array libraries count in 64 bits


class _Slot(BaseModel):
    """A frozen part of a recipe that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Scaling(_Slot):
    """How alpha follows rank.

    Attributes:
        kind: ``constant`` keeps peft's scale ``alpha / r`` at ``scale`` on every target; ``rslora`` gives every target
            the same ``alpha`` and lets peft scale by ``alpha / sqrt(r)`` (arXiv 2312.03732).
        scale: The constant scale.
        alpha: The common alpha of ``rslora``.
    """

    kind: Literal["constant", "rslora"] = "constant"
    scale: float = Field(default=2.0, gt=0)
    alpha: float = Field(default=16.0, gt=0)


class Adapter(_Slot):
    """The kind of adapter that the slots act on.

    Attributes:
        dora: Weight-decomposed LoRA (arXiv 2402.09353).
        dropout: LoRA dropout.
        scaling: How alpha follows rank.
    """

    dora: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scaling: Scaling = Scaling()


class Allocation(_Slot):
    """Which allocator values ranks, and within which bounds.

    Attributes:
        name: A registered allocator.
        faithful: Use the published integer rule with what it really costs, instead of fitting to the budget.
        r_min: Rank that every target of the placement gets first.
        r_max: Largest rank: a number, ``"4x"`` (times the uniform rank of the budget), or none.
        multiple: Ranks are multiples of this.
        options: Further options of the allocator.
    """

    name: str
    faithful: bool = False
    r_min: int = Field(default=0, ge=0, lt=_MOST)
    r_max: int | str | None = None
    multiple: int = Field(default=1, ge=1, lt=_MOST)
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("r_max")
    @classmethod
    def _readable(cls, value: int | str | None) -> int | str | None:
        """Accept 16, '16', '4x' and nothing else."""
        if isinstance(value, str):
            if re.fullmatch(r"[0-9]{1,18}", value):
                value = int(value)
            elif not re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?x", value) or float(value[:-1]) <= 0:
                raise ValueError(f"r_max {value[:40]!r} must be a whole number or a factor such as '4x'")
        if isinstance(value, int) and not 1 <= value < _MOST:
            raise ValueError(f"r_max {value} must be at least 1 and below {_MOST:,}")
        return value


class Initialisation(_Slot):
    """How the adapter starts; ``default`` is peft's: A Kaiming-uniform, B zero."""

    name: Literal["default"] = "default"


class Training(_Slot):
    """Which training method runs.

    Attributes:
        method: A registered training method.
        options: Its options.
    """

    method: str = "standard"
    options: dict[str, Any] = Field(default_factory=dict)


class Recipe(_Slot):
    """A named composition of placement, allocation, initialisation, mask and training method.

    Attributes:
        name: The name users write.
        title: One line for listings.
        citation: Where the method comes from.
        placement: Narrows the candidates; the budget stays that of all candidates.
        allocation: How ranks are dealt.
        initialisation: How the adapter starts.
        mask: Which adapter parameters train; ``None`` trains all.
        training: How it is trained.
        adapter: The adapter the slots act on.
    """

    name: str
    title: str = ""
    citation: str = ""
    placement: str = "all-linear"
    allocation: Allocation
    initialisation: Initialisation = Initialisation()
    mask: None = None
    training: Training = Training()
    adapter: Adapter = Adapter()

    @property
    def signals(self) -> tuple[str, ...]:
        """The profile signals that this recipe reads; empty when it needs no data."""
        from tailora.allocation import ALLOCATORS

        needs = ALLOCATORS[self.allocation.name].needs
        chosen = self.allocation.options.get("signal")
        return (str(chosen), *needs[1:]) if needs and chosen else needs

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return self.model_dump(mode="json")
