"""Ctrl-C once: finish the step, save, stop. Twice: at once. A closed terminal and SIGTERM stop as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopSignals:
    """Turns the first such signal into `asked`; after it the signals do what they always did.

    echo: seconds in which a second one counts as the first: a terminal and a launcher both pass the same Ctrl-C on.
    what: is finished first.
    """

    def __init__(self, echo: float = 0.0, speak: bool = True, what: str = "step") -> None:
        self.asked = 0  # the signal's number
        self._repeat_window, self._verbose, self._at = echo, speak, 0.0
        self._said = f"\nStopping after this {what}; again stops at once.\n".encode()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        # Only a main thread may set handlers; elsewhere whoever runs us stops us its own way.
        if threading.current_thread() is threading.main_thread():
            wanted = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as under nohup
            self._previous = {number: signal.signal(number, self._handle) for number in wanted}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._at = number, time.monotonic()
            if not self._repeat_window:
                self.__exit__()
            if self._verbose:
                # Not through sys.stderr: the signal may have come in the middle of a write to it.
                with suppress(OSError, ValueError, AttributeError):
                    os.write(sys.stderr.fileno(), self._said)
        elif time.monotonic() - self._at > self._repeat_window:
            self.__exit__()
            os.kill(os.getpid(), number)
