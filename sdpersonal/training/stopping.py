"""Ctrl-C once: finish the step, save, stop. Twice: at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType


class StopSignals:
    """Turns the first SIGINT or SIGTERM into `asked`; after it the signals do what they always did."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        # Only a main thread may set handlers; elsewhere whoever runs us stops us its own way.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        sys.stderr.write("\nStopping after this step; again stops at once.\n")
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
