"""What an initialisation is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from tailora.targets.target import Kind

if TYPE_CHECKING:
    from torch import Tensor

    from tailora.profiles import Profile


@dataclass(frozen=True, slots=True)
class Initialisation:
    """How LoRA's ``A`` starts; ``B`` starts at zero, so that the model starts as it was.

    Attributes:
        rows: From a profile with sums and the ranks by target name to the leading rows of each ``A``, float64
            ``[k, in]`` with ``k`` at most the rank; what is left of an ``A`` starts as peft draws it.  ``None`` leaves
            all to peft.
        needs: The signals whose sums ``rows`` reads.
        kinds: Kinds of target that can start so.
    """

    rows: Callable[[Profile, Mapping[str, int]], dict[str, Tensor]] | None = None
    needs: tuple[str, ...] = ()
    kinds: tuple[str, ...] = get_args(Kind)
