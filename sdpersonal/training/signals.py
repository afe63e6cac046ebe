"""Stop after the step, with a checkpoint, at the first Ctrl-C, SIGTERM or SIGHUP; at once at the second."""

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
    """Records the first stop signal in `asked`; after it the previous handlers apply.

    echo: seconds in which a second one counts as the first: a terminal and a launcher both send the same Ctrl-C.
    what: the work that is finished first, for the message.
    """

    def __init__(self, repeat_window: float = 0.0, verbose: bool = True, what: str = "step") -> None:
        self.signal_number = 0  # the signal's number, 0 before any
        self._repeat_window, self._verbose, self._at = repeat_window, verbose, 0.0
        self._said = f"\nStopping after this {what}; again stops at once.\n".encode()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        # Only the main thread may set handlers; a caller in another thread stops the run its own way.
        if threading.current_thread() is threading.main_thread():
            handled = [
                number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
            ]  # ignored under nohup
            self._previous = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.signal_number:
            self.signal_number, self._at = number, time.monotonic()
            if not self._repeat_window:
                self.__exit__()
            if self._verbose:
                # Not through sys.stderr: the signal may have interrupted a write to it.
                with suppress(OSError, ValueError, AttributeError):
                    os.write(sys.stderr.fileno(), self._said)
        elif time.monotonic() - self._at > self._repeat_window:
            self.__exit__()
            os.kill(os.getpid(), number)
