"""Ctrl-C and SIGTERM: training and resumable profiles stop where they can go on, everything else stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Interrupted(KeyboardInterrupt):
    """The user or a scheduler stopped the work; running it again continues.

    It is no ``Exception``: a loop over runs that carries on after a failed one must not carry on after Ctrl-C.

    Attributes:
        exit_code: 128 plus the signal's number, as shells have it: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, message: str, number: int = signal.SIGINT):
        """Keep the sentence and the signal's number."""
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """Whether somebody asked this process to stop.

    Attributes:
        number: The signal that asked, 0 while none did.
    """

    def __init__(
        self,
        *,
        notice: str = "stopping after this step with a checkpoint",
        way_on: str = "run the same command again to continue",
    ) -> None:
        """Start without a request.

        Args:
            notice: What to say at once where the work goes on to a place to stop at; nothing where it is empty.
            way_on: What the error says of going on.
        """
        self.number = 0
        self.notice, self.way_on = notice, way_on
        self._graceful = False

    @contextlib.contextmanager
    def graceful(self) -> Iterator[None]:
        """Let signals only set ``number`` inside this block, whose owner promises to look at it often."""
        self._graceful = True
        try:
            yield
        finally:
            self._graceful = False

    def error(self, done: str = "", way_on: str | None = None) -> Interrupted:
        """Return what to raise.

        Args:
            done: How far the work came, such as ``"at step 17 of 24"``.
            way_on: What to say of going on, instead of this object's ``way_on``.

        Returns:
            The error with its sentence.
        """
        number = self.number or signal.SIGINT
        by = _NAMES.get(signal.Signals(number), f"signal {number}")
        way_on = self.way_on if way_on is None else way_on
        return Interrupted(f"stopped by {by}{f' {done}' if done else ''}; {way_on}", number)

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle SIGINT and SIGTERM inside this block; the handlers are put back afterwards.

        Yields:
            This object.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self  # only the main thread may set handlers
            return

        def handle(number: int, frame: Any) -> None:
            first, self.number = not self.number, number
            if not (first and self._graceful):
                raise self.error()
            # os.write: a print could meet another print of this very thread half-way.
            if self.notice:
                with contextlib.suppress(OSError):
                    os.write(2, f"tailora: {self.notice}; once more stops at once\n".encode())

        before: dict[int, Callable[..., Any] | int | None] = {}
        try:
            for number in _NAMES:
                before[number] = signal.signal(number, handle)
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
