"""The one thread in which the app computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Device:
    """Loads and draws, one thing after another, in a thread of its own.

    Each thread that computes gets a team of OpenMP threads of its own, and once there are more of them than processors
    GNU's runtime hardly spins any more while it waits: one team beside it makes drawing slower (docs/performance.md).
    """

    def __init__(self):
        self._thread = ThreadPoolExecutor(1, "device")

    def do(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """What `work` returns or raises. Not from within such work."""
        return self._thread.submit(work, *given, **named).result()
