"""The five slots of a recipe, checked when it is read."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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
        kind: ``lora``, ``loha``, ``ia3``, ``bottleneck``, or ``weights`` (the base's own, of which a mask must
            choose); a plan's rank is the kind's own size.
        dora: Weight-decomposed LoRA (arXiv 2402.09353).
        dropout: Dropout of LoRA's input or of whole LoHa modules.
        scaling: How alpha follows rank.
        activation: Between the projections of a bottleneck, by its name in transformers.
    """

    kind: Literal["lora", "loha", "ia3", "bottleneck", "weights"] = "lora"
    dora: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scaling: Scaling = Scaling()
    activation: str = "relu"

    @model_validator(mode="after")
    def _one_kind(self) -> Adapter:
        """Refuse a magnitude where there is no LoRA."""
        if self.dora and self.kind != "lora":
            raise ValueError(f"dora: true needs kind: lora, not {self.kind!r}")
        return self

    @property
    def form(self) -> str:
        """The name in the registry of adapter kinds."""
        return "dora" if self.dora else self.kind


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


class Mask(_Slot):
    """Which of the adapter's parameters train (FISH-Tuning, arXiv 2504.04050); the rest stays as it is.

    Attributes:
        selection: ``top`` by Fisher, ``per-tensor``, or a control: ``random``, ``reverse``.
        grow: The adapter is planned with this many times the budget, of which the mask keeps one budget;
            ``largest`` takes the largest adapter there is.
        zero: What is done about a Fisher of zero: ``after_warmup``, ``b_only``, ``per_tensor`` or ``nonzero_init``.
        kind: ``empirical``, ``true`` or ``true-exact`` Fisher.
        reduction: ``square`` or ``absolute`` gradients.
        warmup_steps: Steps of the warm-up.
        warmup_learning_rate: Its learning rate; the run's where left out.
        rewind: Whether the adapter goes back to its start after the warm-up.
    """

    selection: Literal["top", "per-tensor", "random", "reverse"] = "top"
    grow: float | Literal["largest"] = Field(default=2.0)
    zero: Literal["after_warmup", "b_only", "per_tensor", "nonzero_init"] = "after_warmup"
    kind: Literal["empirical", "true", "true-exact"] = "empirical"
    reduction: Literal["square", "absolute"] = "square"
    warmup_steps: int = Field(default=20, ge=1, lt=_MOST)
    warmup_learning_rate: float | None = Field(default=None, gt=0)
    rewind: bool = True

    @field_validator("grow")
    @classmethod
    def _larger(cls, value: float | str) -> float | str:
        """Accept factors above 1."""
        if not isinstance(value, str) and not 1 < value <= 1024:
            raise ValueError(f"grow {value} must be above 1 and at most 1024, or 'largest'")
        return value


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
    mask: Mask | None = None
    training: Training = Training()
    adapter: Adapter = Adapter()

    @model_validator(mode="after")
    def _few_weights(self) -> Recipe:
        """Refuse full fine-tuning, which is no adapter."""
        if self.adapter.kind == "weights" and self.mask is None:
            raise ValueError("adapter.kind: weights trains base weights in full; add a mask, or take another kind")
        return self

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
