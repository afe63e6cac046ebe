"""Stop a running training by a signal, or send it a command.

A signal (Ctrl-C, SIGTERM, SIGHUP) stops it after the step, with a checkpoint; a second one stops it at once. A command
is a word in the file `ask` of the run folder, which the run deletes when it reads it:

    echo sample > runs/me-duck-dreambooth-lora/ask    generate sample images now
    echo keep > runs/me-duck-dreambooth-lora/ask      end here, with the best checkpoint so far
    echo keep 96 > runs/me-duck-dreambooth-lora/ask   end here, with the concept as it was after step 96

The main process polls once a step; all processes exchange their StopRequests beside the step's losses.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any

from .. import storage
from ..errors import UserError
from .run_dir import COMMAND_FILE, checkpoint_steps, has_snapshot

_MAX_BYTES = 100
_MAX_DIGITS = 9  # of a step
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

Handler = Callable[[int, FrameType | None], Any] | int | None
"""A signal's handler, as the module `signal` takes it."""


class Command(IntEnum):
    """A command to the run; of two that arrive together the greater one counts."""

    NOTHING = 0
    SAMPLE = 1
    KEEP = 2


@dataclass(frozen=True)
class StopRequest:
    """A request to leave the training loop: a signal's number, which stops the run, or a command; 0 for none. step: the
    one to keep, 0 for the best."""

    signal: int = 0
    command: Command = Command.NOTHING
    step: int = 0

    def __or__(self, other: StopRequest) -> StopRequest:
        """Return both as one: a signal if there is any, after which no command counts, else the greater command."""
        if signal_number := self.signal or other.signal:
            return StopRequest(signal_number)
        return StopRequest(0, max(self.command, other.command), max(self.step, other.step))

    def __bool__(self) -> bool:
        return bool(self.signal or self.command)


NO_REQUEST = StopRequest()


def send(run: Path, command: Command, step: int = 0) -> None:
    """Send a command to the run in this folder; it replaces one that was not read yet. step: the one to keep, 0 for
    the best."""
    storage.write_text(run / COMMAND_FILE, command.name.lower() + (f" {step}" if step else "") + "\n")


def poll(run: Path) -> StopRequest:
    """Read and delete the command, if any; without one this costs a `stat`. Unknown words are dropped, and so are steps
    of which there is nothing to keep."""
    path = run / COMMAND_FILE
    if not os.path.lexists(path):
        return NO_REQUEST
    text = ""
    with suppress(UserError):  # it is a folder, or larger than a word
        text = storage.read_bytes(path, _MAX_BYTES).decode(errors="replace")
    storage.remove(path)
    word, _, number = text.strip().partition(" ")
    command = Command.__members__.get(word.upper(), Command.NOTHING)
    if not number:
        return StopRequest(0, command)
    step = int(number) if number.isascii() and number.isdigit() and len(number) <= _MAX_DIGITS else 0
    is_kept = command is Command.KEEP and (has_snapshot(run, step) or step in checkpoint_steps(run))
    return StopRequest(0, command, step) if is_kept else NO_REQUEST


class StopSignals:
    """Records the first stop signal in `signal_number`; after it the previous handlers apply.

    repeat_window: seconds in which a second signal counts as the first, since a terminal and a launcher both send the
    same Ctrl-C. what: the work that is finished first, for the message.
    """

    def __init__(self, repeat_window: float = 0.0, verbose: bool = True, what: str = "step") -> None:
        self.signal_number = 0  # the signal's number, 0 before any
        self._repeat_window, self._verbose, self._received_at = repeat_window, verbose, 0.0
        self._message = f"\nStopping after this {what}; again stops at once.\n".encode()
        self._previous: dict[int, Handler] = {}

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
            self.signal_number, self._received_at = number, time.monotonic()
            if not self._repeat_window:
                self.__exit__()
            if self._verbose:
                # Not through sys.stderr: the signal may have interrupted a write to it.
                with suppress(OSError, ValueError, AttributeError):
                    os.write(sys.stderr.fileno(), self._message)
        elif time.monotonic() - self._received_at > self._repeat_window:
            self.__exit__()
            os.kill(os.getpid(), number)
