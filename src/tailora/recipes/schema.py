"""The five slots of a recipe, checked when it is read."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

PILOT_SIGNALS = ("pilot_spectrum", "pilot_worth")
"""Signals that a run's own pilot measures; no profile of the base model can."""

_MOST = 2**31  # no matrix is larger, and array libraries count in 64 bits


def read_rank(name: str, value: int | str) -> int | str:
    """Read a rank that may be written as a multiple of the budget's uniform rank.

    Args:
        name: Of the field, for the error.
        value: 16, ``"16"`` or ``"4x"``.

    Returns:
        A number, or the text of a factor.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, str):
        if re.fullmatch(r"[0-9]{1,18}", value):
            value = int(value)
        elif not re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?x", value) or float(value[:-1]) <= 0:
            raise ValueError(f"{name} {value[:40]!r} must be a whole number or a factor such as '4x'")
    if isinstance(value, int) and not 1 <= value < _MOST:
        raise ValueError(f"{name} {value} must be at least 1 and below {_MOST:,}")
    return value


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
        return None if value is None else read_rank("r_max", value)


class Start(_Slot):
    """Where the adapter's training starts.

    Attributes:
        name: A registered initialisation; ``default`` is peft's.
    """

    name: str = "default"


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


class Pilot(_Slot):
    """A short training of a larger adapter, by whose update ranks are dealt.

    Attributes:
        rank: Its rank on every candidate: a number, or ``"8x"`` (times the uniform rank of the budget).
        share: Its share of the training steps.
        keep: Whether training goes on from its update, truncated to the plan, so that its steps are part of the
            training; otherwise training starts anew and takes all its steps.
        scale: Its ``alpha / r`` over the run's; where left out the budget's uniform rank over the pilot's, so that
            alpha is that of uniform ranks and the whole update moves as fast at the same learning rate.
    """

    rank: int | str = "8x"
    share: float = Field(default=0.4, gt=0, lt=1)
    keep: bool = True
    scale: float | None = Field(default=None, gt=0)

    @field_validator("rank")
    @classmethod
    def _readable(cls, value: int | str) -> int | str:
        """Accept 16, '16' and '8x'."""
        return read_rank("pilot.rank", value)


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
        pilot: The short training before, whose update the allocation reads or the training goes on from.
        adapter: The adapter the slots act on.
    """

    name: str
    title: str = ""
    citation: str = ""
    placement: str = "all-linear"
    allocation: Allocation
    initialisation: Start = Start()
    mask: Mask | None = None
    training: Training = Training()
    pilot: Pilot | None = None
    adapter: Adapter = Adapter()

    @model_validator(mode="after")
    def _few_weights(self) -> Recipe:
        """Refuse full fine-tuning, which is no adapter."""
        if self.adapter.kind == "weights" and self.mask is None:
            raise ValueError("adapter.kind: weights trains base weights in full; add a mask, or take another kind")
        return self

    @model_validator(mode="after")
    def _fitting_start(self) -> Recipe:
        """Refuse a start that the adapter or a pilot does not leave open."""
        name = self.initialisation.name
        if name == "default":
            return self
        if self.adapter.form not in ("lora", "dora"):
            raise ValueError(f"initialisation {name!r} is of LoRA's A, which {self.adapter.form!r} lacks; leave it out")
        if self.pilot is not None and self.pilot.keep:
            raise ValueError(f"initialisation {name!r} has no effect where a pilot is kept; leave out one of the two")
        return self

    @model_validator(mode="after")
    def _fitting_pilot(self) -> Recipe:
        """Refuse what a pilot cannot be combined with, and an allocation that reads one where there is none."""
        reads = any(signal in PILOT_SIGNALS for signal in self.signals)
        if self.pilot is None:
            if reads:
                raise ValueError(f"allocation {self.allocation.name!r} reads a pilot's update; add the slot 'pilot'")
            return self
        if self.adapter.form != "lora":
            raise ValueError(f"a pilot trains plain LoRA, not {self.adapter.form!r}; leave out one of the two")
        if self.adapter.scaling.kind != "constant":
            raise ValueError("a pilot changes ranks on the way, so that scaling.kind must be constant; leave out one")
        if self.mask is not None or self.training.method != "standard":
            what = "a mask" if self.mask is not None else f"the training method {self.training.method!r}"
            raise ValueError(f"a pilot cannot be combined with {what}; leave out one of the two")
        if not reads and not self.pilot.keep:
            raise ValueError("nothing reads the pilot and its update is dropped; set keep: true or leave the pilot out")
        return self

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that this recipe reads, a pilot's included; empty when it needs no data."""
        from tailora.allocation import ALLOCATORS

        needs = ALLOCATORS[self.allocation.name].needs
        chosen = self.allocation.options.get("signal")
        return (str(chosen), *needs[1:]) if needs and chosen else needs

    @property
    def profiled_signals(self) -> tuple[str, ...]:
        """Those of ``signals`` that a profile of the base model holds."""
        return tuple(signal for signal in self.signals if signal not in PILOT_SIGNALS)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return self.model_dump(mode="json")
