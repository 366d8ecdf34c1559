"""What a UniPELT adapter is made of, in peft's form."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal, get_args

from peft.config import PeftConfig

from tailora.errors import UserError, unknown_name

Gate = Literal["auto", "sequence", "token"]
_REDUCTION = 16.0


class UniPELTType(str, enum.Enum):  # noqa: UP042 - peft reads the class's name out of str(), as of its own PeftType
    """The method's name in peft's tables and in ``adapter_config.json``."""

    UNIPELT = "UNIPELT"


@dataclass
class UniPELTConfig(PeftConfig):
    """Gated LoRA, prefix tuning and bottleneck adapter, for ``peft.get_peft_model``.

    In every block, with the layers' own inputs ``x`` and outputs ``y`` and gates ``g(h) = sigmoid(w h + b)``:

    - query and value projection: ``y + g(x) * B A x``;
    - attention: the keys and values of a prefix, both times ``g(x)``, before the tokens' own and visible to all;
    - feed-forward's down projection: ``y + g(y) * up(act(down(y)))``.

    Each gate is a linear layer of its own with one output; the query projection has one for LoRA and one for the
    prefix.  Sources: the three submodules, their places and one gate for each are the paper's as its summaries and
    both programs show them (the text of the paper was not at hand).  Read in the released code (morningmoni/UniPELT)
    and in the `adapters` package: rank 8, prefix length 10, reduction 16, relu, the gate's place and its mean over all
    positions, the gate in the place of LoRA's ``alpha / r``, gate weights from Normal(0, 0.02) (in the released code
    only the adapter's), and prefixes from Normal(0, 1).  Tailora's own: the mean leaves out padding, ``token`` for
    causal models, and a prefix projection per layer instead of one for all layers.

    Args:
        lora_rank: LoRA's rank on query and value; 0 for no LoRA.
        prefix_length: Prefix positions per layer; 0 for no prefix.
        prefix_projection: Hidden size of a two-layer network (tanh) that makes the prefix out of a table of the width
            of the model; ``None`` trains keys and values themselves.
        bottleneck: The adapter's size; 0 for no adapter.
        reduction_factor: Width by size, rounded down to a whole size of at least 1; 16 where neither is given.
        activation: The adapter's; a name of transformers' ``ACT2FN``.
        gate: ``sequence``: the mean of the gate over an example's tokens; ``token``: each position its own gate;
            ``auto``: ``token`` in causal models, where a mean would show each token those behind it, else ``sequence``.
        init_weights: ``True``: LoRA's and the adapter's up projections are zero, their down projections drawn as
            LoRA's A, gates begin near a half.  ``False``: all, also biases, as PyTorch draws them; for tests.
        target_modules: Those of the places above that get their part, in peft's forms; all by default.
        exclude_modules: Modules to leave out, in peft's forms.
        modules_to_save: Modules that train in full beside the adapters.

    Raises:
        UserError: A value cannot be used.
    """

    lora_rank: int = 8
    prefix_length: int = 10
    prefix_projection: int | None = None
    bottleneck: int | None = None
    reduction_factor: float | None = None
    activation: str = "relu"
    gate: Gate = "auto"
    init_weights: bool = True
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        """Check the values and fill in those that follow from others."""
        super().__post_init__()
        self.peft_type = UniPELTType.UNIPELT
        if self.gate not in get_args(Gate):
            raise unknown_name("gate", str(self.gate), get_args(Gate))
        if self.bottleneck is not None and self.reduction_factor is not None:
            raise UserError(
                f"bottleneck={self.bottleneck} and reduction_factor={self.reduction_factor} both set the adapter's "
                "size; give one of them"
            )
        if self.bottleneck is None and self.reduction_factor is None:
            self.reduction_factor = _REDUCTION
        if self.reduction_factor is not None and not self.reduction_factor > 0:
            raise UserError(f"reduction_factor={self.reduction_factor} is not above 0; 16 is usual")
        for name, least in (("lora_rank", 0), ("prefix_length", 0), ("prefix_projection", 1), ("bottleneck", 0)):
            value = getattr(self, name)
            optional = name in ("prefix_projection", "bottleneck")
            if optional and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"{name}={value!r} is not a whole number of at least {least}")
        if not (self.lora_rank or self.prefix_length or self.bottleneck != 0):
            raise UserError("lora_rank, prefix_length and bottleneck are all 0; leave at least one part")
        if self.target_modules == "all-linear":
            raise UserError("target_modules='all-linear' means modules that UniPELT has no part for; leave it out")
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                setattr(self, name, sorted(value))

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the layers that get a part."""
        found = []
        if self.lora_rank or self.prefix_length:
            found.append("attention.query")
        if self.lora_rank:
            found.append("attention.value")
        if self.bottleneck != 0:
            found.append("ffn.down")
        return tuple(found)

    def size_of(self, width: int) -> int:
        """Return the adapter's size.

        Args:
            width: Output width of the layer before it.

        Returns:
            The size, at least 1, or 0 where there is no adapter.
        """
        if self.bottleneck is not None:
            return self.bottleneck
        return max(1, int(width // (self.reduction_factor or _REDUCTION)))
