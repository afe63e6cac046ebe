"""The one thread in which the app computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DeviceWorker:
    """Loads and draws, one thing after another, in a thread of its own.

    Each thread that computes gets a team of OpenMP threads of its own, and once there are more of them than processors
    GNU's runtime hardly spins any more while it waits: one team beside it makes drawing slower (docs/performance.md).
    """

    def __init__(self):
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        # Not an executor: Python waits for those at its end, and Ctrl-C must end a base's download too.
        threading.Thread(target=self._run, name="device", daemon=True).start()

    def do(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """What `work` returns or raises. Not from within such work."""
        done: Future = Future()
        self._waiting.put((done, partial(work, *given, **named)))
        return done.result()

    def _run(self) -> None:
        while True:
            done, work = self._waiting.get()
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)
            del done, work  # a base that was loaded would stay as long as nothing else comes
