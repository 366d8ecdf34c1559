"""Rounds over the batches told as examples done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tailora.signals.base import Context
from tailora.signals.batching import count_examples
from tailora.signals.examples import for_model
from tailora.signals.newton.options import iterations_of


class Progress:
    """Turns rounds over the batches into examples done."""

    def __init__(self, tell: Callable[[int], None] | None, rounds: int, batches: int, examples: int) -> None:
        """Start at nothing.

        Args:
            tell: Called with a number of examples, or ``None``.
            rounds: Rounds over all batches in all.
            batches: Batches of a round.
            examples: Examples of a round.
        """
        self._tell, self._all, self._examples, self._done = tell, rounds * batches, examples, 0

    @classmethod
    def over(cls, context: Context, batches: Sequence[Mapping[str, Any]], how: Any) -> Progress:
        """Make the progress of a solution over some batches."""
        examples = sum(count_examples(for_model(batch)) for batch in batches)
        return cls(how.progress, iterations_of(context.options) + 1, len(batches), examples)

    def one(self) -> None:
        """Count a batch."""
        self._done += 1
        if self._tell is not None:
            self._tell(int(min(1.0, self._done / self._all) * self._examples))

    def end(self) -> None:
        """Say that all is done, however soon the iterations ended."""
        if self._tell is not None:
            self._tell(self._examples)
