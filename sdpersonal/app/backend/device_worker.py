"""Run every model of the app in one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Runner(Protocol):
    """Runs loading and generation."""

    def run(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T: ...


class CallingThread:
    """Run in the calling thread: where another machine computes, nobody need wait for anybody here."""

    def run(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        return work(*args, **named)


class DeviceWorker:
    """Run loading and generation in one dedicated thread, one call after another.

    Each computing thread gets its own team of OpenMP threads, and once there are more of them than processors, GNU's
    runtime hardly spins while it waits: a second team makes generation slower (docs/performance.md).
    """

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        # Not an executor: Python waits for those at exit, but Ctrl-C must end a model's download too.
        threading.Thread(target=self._run, name="device", daemon=True).start()

    def run(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Run `work` in the device thread; return or raise what it does. Do not call it from that thread."""
        done: Future = Future()
        self._waiting.put((done, partial(work, *args, **named)))
        return done.result()

    def _run(self) -> None:
        while True:
            done, work = self._waiting.get()
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)
            del done, work  # a loaded model would stay referenced until the next call
