"""What a planted problem is: a frozen description from which everything else follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tailora.artifacts import content_hash
from tailora.errors import UserError, unknown_name

ARCHITECTURES = ("llama", "gpt2", "bert", "t5")
LAWS = ("uniform", "power", "correlated", "same")
LABELS = ("distribution", "sampled")
TOKENS = ("uniform", "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Size of a random model.

    Attributes:
        hidden: Width of the residual stream.
        inner: Width of the feed-forward layer.
        layers: Blocks (of T5: encoder blocks and as many decoder blocks).
        heads: Attention heads.
        vocabulary: Tokens.
        gain: Standard deviation of a target's weight times the root of its inputs.
        head_gain: The same for the output head.
    """

    hidden: int = 32
    inner: int = 80
    layers: int = 4
    heads: int = 2
    vocabulary: int = 64
    gain: float = 0.6
    head_gain: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Planting:
    """Which matrices get an update, of which rank, size and spectrum.

    Attributes:
        placement: The rule that says which targets may be planted; ``{roles:2}`` draws two roles, ``{layers:2}`` a
            window of two neighbouring depths.
        share: Share of those targets that are planted.
        law: ``uniform``: whole numbers drawn from ``low`` to ``high``; ``power``: ``high / i**exponent`` for the i-th
            target of a random order; ``correlated``: a walk along the depth of every role; ``same``: ``high``.
        low: Smallest rank of ``uniform``.
        high: Largest rank.
        exponent: Of ``power``.
        memory: Of ``correlated``: correlation of neighbours along the depth.
        size: Frobenius norm of an update over that of its weight.
        by_rank: Let the size grow with the root of the rank, so that every direction is as strong in every target;
            ``size`` is then that of a target with rank ``high``.
        by_cost: Let the size grow with the root of what a rank costs, so that a parameter is worth as much in every
            target; ``size`` is then that of a target of mean cost.
        decay: The k-th singular value falls like ``k**-decay``; 0 is a flat spectrum.
    """

    placement: str = "all-linear"
    share: float = 0.25
    law: Literal["uniform", "power", "correlated", "same"] = "uniform"
    low: int = 2
    high: int = 12
    exponent: float = 1.0
    memory: float = 0.9
    size: float = 0.6
    by_rank: bool = False
    by_cost: bool = False
    decay: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemSpec:
    """One planted problem.

    Attributes:
        family: The name under which results are averaged.
        seed: Of everything that is drawn: weights, planting, tokens, labels.
        architecture: ``llama``, ``gpt2``, ``bert``, ``t5``, or the folder of a saved causal language model.
        shape: Size of a random model; not used with a folder.
        planting: What the teacher has that the base lacks.
        labels: ``distribution``: the student sees the teacher's whole distribution; ``sampled``: a token drawn from it
            per position.
        noise: Share of the labels' probability that is spread over all tokens instead.
        tokens: ``uniform``: drawn at random; ``model``: text sampled from the base model.
        sequences: Different training sequences; ``None`` draws new ones for ever.
        length: Tokens of a sequence.
        batch: Sequences of a training step.
        evaluation: Sequences of the held-out set, and as many of the validation set.
        calibration: Sequences an allocator may look at.
    """

    family: str
    seed: int = 0
    architecture: str = "llama"
    shape: Shape = field(default_factory=Shape)
    planting: Planting = field(default_factory=Planting)
    labels: Literal["distribution", "sampled"] = "distribution"
    noise: float = 0.0
    tokens: Literal["uniform", "model"] = "uniform"
    sequences: int | None = None
    length: int = 16
    batch: int = 16
    evaluation: int = 128
    calibration: int = 128

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        for value, known, what in (
            (self.planting.law, LAWS, "rank law"),
            (self.labels, LABELS, "kind of labels"),
            (self.tokens, TOKENS, "source of tokens"),
        ):
            if value not in known:
                raise unknown_name(what, value, known)
        planting = self.planting
        checks = (
            ("planting.share", planting.share, 0 < planting.share <= 1, "above 0 and at most 1"),
            ("planting.high", planting.high, planting.high >= 1, "at least 1"),
            ("planting.low", planting.low, 0 <= planting.low <= planting.high, "from 0 to planting.high"),
            ("planting.size", planting.size, planting.size > 0, "above 0"),
            ("planting.memory", planting.memory, 0 <= planting.memory < 1, "from 0 to below 1"),
            ("noise", self.noise, 0 <= self.noise < 1, "from 0 to below 1"),
            ("length", self.length, self.length >= 2, "at least 2"),
            ("batch", self.batch, self.batch >= 1, "at least 1"),
            ("evaluation", self.evaluation, self.evaluation >= 1, "at least 1"),
            ("calibration", self.calibration, self.calibration >= 2, "at least 2"),
            ("sequences", self.sequences, self.sequences is None or self.sequences >= 1, "at least 1"),
        )
        for name, value, fine, words in checks:
            if not fine:
                raise UserError(f"{name}={value} of the planted problem {self.family!r} must be {words}; change it")

    @property
    def hash(self) -> str:
        """SHA-256 of the description."""
        return content_hash(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ProblemSpec:
        """Rebuild a description from ``to_dict``'s result."""
        return cls(**{**data, "shape": Shape(**data["shape"]), "planting": Planting(**data["planting"])})

    def with_seed(self, seed: int) -> ProblemSpec:
        """Return the same problem with another seed."""
        return replace(self, seed=seed)
