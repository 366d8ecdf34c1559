"""Budgets: how many adapter parameters may train, in the forms people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tailora.errors import BudgetError
from tailora.targets import Target

BYTES_PER_PARAMETER = {"fp32": 4, "bf16": 2, "fp16": 2}
_COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
_BYTE_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_FORMS = "write it as 'r=8', '2.4M', '300k', '0.5%', '12MB' or a whole number of parameters"


@dataclass(frozen=True, slots=True)
class Budget:
    """A parsed budget.

    Attributes:
        text: What the user wrote.
        kind: ``rank`` (this rank on every candidate), ``params``, ``share`` (of the model's parameters) or ``bytes``.
        value: Rank, parameters, fraction (0.005 for 0.5 %) or bytes.
        bytes_per_param: Bytes one saved parameter takes, for ``bytes``.
    """

    text: str
    kind: Literal["rank", "params", "share", "bytes"]
    value: float
    bytes_per_param: int = 4

    @classmethod
    def parse(cls, budget: str | int | Budget) -> Budget:
        """Read a budget.

        ``r=8`` is what rank 8 on every candidate target would cost as plain LoRA, so that the same words give the same
        number of parameters to every recipe.  ``12MB`` counts 4 bytes a parameter (peft trains adapters in float32);
        ``12MB@bf16`` counts 2.

        Args:
            budget: Text, a whole number of parameters, or an already parsed budget.

        Returns:
            The budget.

        Raises:
            BudgetError: It cannot be read, or is not a finite positive amount.
        """
        if isinstance(budget, Budget):
            return budget
        if isinstance(budget, bool) or not isinstance(budget, str | int):
            raise BudgetError(f"budget {budget!r} is neither text nor a whole number; {_FORMS}")
        text = str(budget).strip()
        compact = re.sub(r"(?<=\d)[_,](?=\d)", "", text).replace(" ", "").lower()
        if compact.startswith("r="):
            return cls._rank(text, compact[2:])
        matched = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(%|[kmgt]?i?b|[kmg])?(?:@(\w+))?", compact)
        if matched is None:
            raise BudgetError(f"budget {text!r} cannot be read; {_FORMS}")
        number, unit, precision = float(matched[1]), matched[2] or "", matched[3]
        if not math.isfinite(number) or number <= 0:
            raise BudgetError(f"budget {text!r} is not a finite amount above zero; {_FORMS}")
        if precision is not None and (unit not in _BYTE_UNITS or precision not in BYTES_PER_PARAMETER):
            known = ", ".join(BYTES_PER_PARAMETER)
            raise BudgetError(f"budget {text!r}: '@' needs a size such as '12MB' and one of {known} behind it")
        if unit == "%":
            if number > 100:
                raise BudgetError(f"budget {text!r} is more than the whole model; ask for at most 100%")
            return cls(text, "share", number / 100)
        if unit in _BYTE_UNITS:
            return cls(text, "bytes", number * _BYTE_UNITS[unit], BYTES_PER_PARAMETER[precision or "fp32"])
        if unit not in _COUNT_UNITS:
            raise BudgetError(f"budget {text!r} has the unit {unit!r}, which is not known; {_FORMS}")
        amount = number * _COUNT_UNITS[unit]
        if amount < 1:
            raise BudgetError(f"budget {text!r} is less than one parameter; {_FORMS}")
        return cls(text, "params", amount)

    @classmethod
    def _rank(cls, text: str, number: str) -> Budget:
        """Read the part behind ``r=``."""
        if not re.fullmatch(r"[+-]?\d+", number):
            raise BudgetError(f"budget {text!r}: the rank {number!r} is not a whole number; write it as 'r=8'")
        if int(number) < 1:
            raise BudgetError(f"budget {text!r}: the rank must be at least 1; write it as 'r=8'")
        return cls(text, "rank", int(number))

    def params(self, candidates: Sequence[Target], *, model_params: int | None = None) -> int:
        """Return the budget as a number of trainable parameters.

        Args:
            candidates: The targets that ``r=...`` counts.
            model_params: Parameters of the base model, for ``0.5%``.

        Returns:
            Parameters, rounded down.

        Raises:
            BudgetError: A share is asked of a model whose size is not known, or the amount is absurd.
        """
        if self.kind == "rank":
            return sum(target.cost(int(self.value)) for target in candidates)
        if self.kind == "share":
            if model_params is None:
                raise BudgetError(
                    f"budget {self.text!r} is a share of the model, whose size a list of targets does not tell; "
                    "give the model or its profile, or write the budget as a number of parameters"
                )
            amount = self.value * model_params
        elif self.kind == "bytes":
            amount = self.value / self.bytes_per_param
        else:
            amount = self.value
        if amount < 1:
            raise BudgetError(f"budget {self.text!r} comes to less than one parameter; {_FORMS}")
        # A whole number such as 0.1 % of 40,000 must not lose one parameter to binary fractions.
        return math.floor(amount + 1e-6) if amount < 2**53 else int(amount)
