"""What a bottleneck adapter is made of, in peft's form."""

from __future__ import annotations

import enum
import functools
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from peft.config import PeftConfig

from tailora.errors import UserError, unknown_name

Placement = Literal["houlsby", "pfeiffer"]
# Houlsby's released code computes GELU by its tanh form; relu is what Pfeiffer's configuration in the `adapters`
# package says.
_ACTIVATIONS: dict[Placement, str] = {"houlsby": "gelu_pytorch_tanh", "pfeiffer": "relu"}
_INITIAL = ("bert", "houlsby")
_REDUCTION = 16.0


class BottleneckType(str, enum.Enum):  # noqa: UP042 - peft reads the class's name out of str(), as of its own PeftType
    """The method's name in peft's tables and in ``adapter_config.json``."""

    BOTTLENECK = "BOTTLENECK"


@dataclass
class BottleneckConfig(PeftConfig):
    """Bottleneck adapters, for ``peft.get_peft_model``.

    Behind a layer of output width d stands ``y + scaling * up(act(down(y)))`` with a down projection to m values and an
    up projection back to d.  ``houlsby`` puts one behind the attention's output projection and one behind the
    feed-forward's down projection of every block (Houlsby et al. 2019, arXiv 1902.00751), ``pfeiffer`` only the latter
    (Pfeiffer et al. 2021, arXiv 2005.00247).

    Args:
        placement: ``houlsby`` or ``pfeiffer``; not looked at where ``target_modules`` is given.
        bottleneck: The size m.
        reduction_factor: d/m, rounded down to a whole m of at least 1; 16 where neither is given.
        size_pattern: Sizes of single layers: a regular expression that a module's name must match up to its end (from
            its beginning or behind a dot, as in peft's ``rank_pattern``) to its m.
        activation: A name of transformers' ``ACT2FN``; by default ``gelu_pytorch_tanh`` for ``houlsby`` and ``relu``
            for ``pfeiffer``.
        scaling: What the adapter's output is multiplied with.
        use_bias: Whether both projections have biases.
        layer_norm: Whether a new layer norm stands before the down projection.
        init_weights: ``True``: the up projection is zero, so that nothing changes at first, and the down projection is
            drawn as LoRA's A.  ``"bert"``: both from Normal(0, 0.02), the default of the `adapters` package.
            ``"houlsby"``: both from a normal distribution of deviation 0.001 cut at 0.002, as in Houlsby's released
            code.
            ``False``: both, and the biases, as PyTorch draws a ``Linear``; for tests.
        target_modules: Modules to put adapters behind, in peft's forms, instead of ``placement``.
        exclude_modules: Modules to leave out, in peft's forms.
        modules_to_save: Modules that train in full beside the adapters.

    Raises:
        UserError: A value cannot be used.
    """

    placement: Placement = "houlsby"
    bottleneck: int | None = None
    reduction_factor: float | None = None
    size_pattern: dict[str, int] = field(default_factory=dict)
    activation: str | None = None
    scaling: float = 1.0
    use_bias: bool = True
    layer_norm: bool = False
    init_weights: bool | Literal["bert", "houlsby"] = True
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        """Check the values and fill in those that follow from others."""
        super().__post_init__()
        self.peft_type = BottleneckType.BOTTLENECK
        if self.placement not in get_args(Placement):
            raise unknown_name("placement of bottleneck adapters", str(self.placement), get_args(Placement))
        if not isinstance(self.init_weights, bool) and self.init_weights not in _INITIAL:
            raise unknown_name("init_weights", str(self.init_weights), (*_INITIAL, "True", "False"))
        self._check_sizes()
        self._check_modules()
        self.activation = self.activation or _ACTIVATIONS[self.placement]

    def _check_sizes(self) -> None:
        """Refuse sizes that are none."""
        if self.bottleneck is not None and self.reduction_factor is not None:
            raise UserError(
                f"bottleneck={self.bottleneck} and reduction_factor={self.reduction_factor} both set the adapter's "
                "size; give one of them"
            )
        if self.bottleneck is None and self.reduction_factor is None:
            self.reduction_factor = _REDUCTION
        if self.reduction_factor is not None and not self.reduction_factor > 0:
            raise UserError(f"reduction_factor={self.reduction_factor} is not above 0; 16 is usual")
        given = {"bottleneck": self.bottleneck} if self.bottleneck is not None else {}
        given |= {f"size_pattern[{pattern!r}]": size for pattern, size in self.size_pattern.items()}
        for what, size in given.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise UserError(
                    f"{what}={size!r} is not a whole number of at least 1; leave a layer out with exclude_modules"
                )
        for pattern in self.size_pattern:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"size_pattern key {pattern!r} is no regular expression ({error}); escape it") from None

    def _check_modules(self) -> None:
        """Refuse peft's word for all linear layers, and bring names into an order that files keep."""
        if self.target_modules == "all-linear":
            raise UserError(
                "target_modules='all-linear' would put an adapter behind every projection; leave it out and choose a "
                "placement, or name the modules"
            )
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                setattr(self, name, sorted(value))

    def size_of(self, name: str, width: int) -> int:
        """Return the bottleneck size behind one module.

        Args:
            name: The module's full name.
            width: Its output width d.

        Returns:
            The size m, at least 1.

        Raises:
            UserError: Two patterns give the module different sizes.
        """
        found = {pattern: size for pattern, size in self.size_pattern.items() if matches(pattern, name)}
        if len(set(found.values())) > 1:
            raise UserError(f"size_pattern gives {name!r} different sizes: {found}; let one key match it")
        if found:
            return next(iter(found.values()))
        if self.bottleneck is not None:
            return self.bottleneck
        return max(1, int(width // (self.reduction_factor or _REDUCTION)))

    def parameters_of(self, name: str, width: int) -> int:
        """Return how many parameters the adapter behind one module trains.

        Args:
            name: The module's full name.
            width: Its output width d.

        Returns:
            ``2 d m``, plus ``m + d`` with biases, plus ``2 d`` with a layer norm.
        """
        size = self.size_of(name, width)
        return 2 * width * size + (size + width) * self.use_bias + 2 * width * self.layer_norm


def matches(pattern: str, name: str) -> bool:
    """Tell whether a key of ``size_pattern`` means a module, by the rule of peft's ``rank_pattern``.

    Args:
        pattern: A regular expression.
        name: A module's full name.

    Returns:
        Whether the name, or what follows one of its dots, matches to its end.
    """
    return _compiled(pattern).match(name) is not None


@functools.lru_cache(maxsize=65536)
def _compiled(pattern: str) -> re.Pattern[str]:
    """Keep an expression: plans write one key per layer, more than the 512 that ``re`` keeps by itself."""
    return re.compile(rf"(.*\.)?({pattern})$")
