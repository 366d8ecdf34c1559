"""What layers have in common whose adapters cannot be merged into weights."""

from __future__ import annotations

import warnings
from typing import ClassVar

from tailora.errors import UserError


class Unmergeable:
    """Refuses to merge, with the reason.

    Attributes:
        why_not: One sentence.
    """

    why_not: ClassVar[str]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: there is no weight that does what the adapter does.

        Args:
            safe_merge: Not used.
            adapter_names: Not used.

        Raises:
            UserError: Always.
        """
        raise UserError(self.why_not)

    def unmerge(self) -> None:
        """Do nothing, with a warning as from peft's layers: nothing can have been merged."""
        warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
