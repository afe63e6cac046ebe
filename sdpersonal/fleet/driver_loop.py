"""Run the loop of a driver: hand out tasks to the workers, take their ends, add what is finished to its place.

It keeps nothing that is not in the store, or that cannot be made again: when a driver dies, its workers end, and the
same command goes on. A store that fails delays, and loses nothing.
"""

from __future__ import annotations

import math
import secrets
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from ..errors import DiskFull, Diverged, Interrupted, UserError
from .worker import Ended

MAX_DEATHS = 3  # deaths in a row that got nowhere, after which a task is not tried again
CRASHED = 1  # exit code of a task whose process or machine died too often
SEVERITY = (0, UserError.exit_code, Diverged.exit_code, CRASHED, DiskFull.exit_code, Interrupted.exit_code)
LOST = "Its worker was lost."
_STOP_SECONDS = 90.0
_THREADS = 32  # requests to the store at once: an object store answers after tens of milliseconds
T = TypeVar("T")


class WorkerPool(Protocol):
    """Where tasks are done. Ray has the real one (cluster.py)."""

    def free(self) -> int:
        """Return how many tasks can be started now."""

    def start(self, task_id: str, number: int) -> None:
        """Start an attempt at a task on a free worker."""

    def wait(self, seconds: float) -> list[Ended]:
        """Wait until a task ends or a worker becomes free, at most that long; return the tasks that ended."""

    def slots(self) -> int:
        """Return how many workers there are or will be."""

    def stop(self) -> None:
        """Ask all workers to end their tasks soon."""


@dataclass
class DriverOptions:
    """beat_seconds: between two looks at the running tasks; lease_seconds: after which a training of another driver
    without a new beat counts as given up; patience: seconds to try to add what is finished when all else is done."""

    beat_seconds: float = 5.0
    lease_seconds: float = 30.0
    patience: float = 900.0
    session: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True)
class Summary:
    """How far a driver is, in jobs or images. failed: or cancelled; seconds_left: None before it can be estimated."""

    total: int
    done: int
    failed: int
    running: int
    seconds_left: float | None

    @property
    def over(self) -> int:
        return self.done + self.failed


class DriverLoop(ABC):
    """Does tasks with a pool of workers. on_event: called with a line for the user when something happens."""

    finishes = "adds what is finished"  # what the same command does, when what is finished could not be added

    def __init__(self, pool: WorkerPool, options: DriverOptions, on_event: Callable[[str], None]):
        self._pool, self._options, self._say = pool, options, on_event
        self._ended: list[Ended] = []  # what the store could not be told yet
        self._lines: deque[str] = deque()  # for the user, from all threads
        self._threads = ThreadPoolExecutor(_THREADS, "store")
        self._looked_at = -math.inf
        self._waits_since = 0.0
        self._last_line = ""

    def run(self) -> int:
        """Work until everything is over; return the exit code of the worst. Raises DiskFull if what is finished could
        not be added to its place, UserError if no worker can be started."""
        self._begin()
        try:
            while not self.is_over():
                self._round()
        except KeyboardInterrupt:
            self._stop()
            raise
        finally:
            self._show()
            self._threads.shutdown(wait=False, cancel_futures=True)
        return self.exit_code()

    # --- what a driver does -------------------------------------------------------------------------------------------

    @abstractmethod
    def is_over(self) -> bool: ...

    @abstractmethod
    def exit_code(self) -> int: ...

    @abstractmethod
    def _begin(self) -> None:
        """Read what the store knows of earlier commands."""

    @abstractmethod
    def _start_tasks(self) -> None:
        """Start tasks on the free workers."""

    @abstractmethod
    def _end(self, ended: Ended) -> None:
        """Note how a task ended, in a thread of its own. It is called again if the store fails."""

    @abstractmethod
    def _add_finished(self) -> UserError | None:
        """Add what is finished to its place; return the error if some could not be added yet."""

    @abstractmethod
    def _look(self) -> None:
        """Look at the running tasks in the store, every beat."""

    @abstractmethod
    def _is_busy(self) -> bool:
        """Return whether a task waits or runs."""

    @abstractmethod
    def _has_own_running(self) -> bool:
        """Return whether a worker of this driver is at work."""

    @abstractmethod
    def _on_beat(self) -> None:
        """Show the progress, in the store too."""

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _round(self) -> None:
        self._start_tasks()
        self._end_tasks(self._pool.wait(min(1.0, self._options.beat_seconds)))
        self._check_patience(self._add_finished())
        if time.monotonic() - self._looked_at >= self._options.beat_seconds:
            self._looked_at = time.monotonic()
            self._look()
            self._show()

    def _show(self) -> None:
        with suppress(UserError):  # the page is in the store
            self._on_beat()

    def _end_tasks(self, ended: Sequence[Ended]) -> None:
        self._ended = self._try_all(self._end, [*self._ended, *ended])

    def _stop(self) -> None:
        """End all tasks in good order; another Ctrl-C ends the waiting."""
        self._say("Stopping after this step; again stops at once.")
        self._pool.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        while self._has_own_running() and time.monotonic() < deadline:
            self._end_tasks(self._pool.wait(1.0))

    def _check_patience(self, error: UserError | None) -> None:
        """Raise the error if all that is left to do has failed with it for too long."""
        if error:
            self._say_once(f"{error.message} What is finished waits in the storage; trying again.")
        if not error or self._is_busy():
            self._waits_since = time.monotonic()
        elif time.monotonic() - self._waits_since > self._options.patience:
            hint = f"The same command again {self.finishes}."
            raise type(error)(error.message, hint) if isinstance(error, DiskFull) else UserError(error.message, hint)

    def _try_all(self, action: Callable[[T], object], items: Sequence[T]) -> list[T]:
        """Do what can be done a beat later as well for several tasks at once; return those of which the store let it
        not be done."""
        errors = list(self._threads.map(partial(_error_of, action), items))
        while self._lines:
            self._say(self._lines.popleft())
        for error in filter(None, errors):
            self._say_once(f"{error.message} Trying again.")
        return [item for item, error in zip(items, errors, strict=True) if error]

    def _say_once(self, line: str) -> None:
        if line != self._last_line:
            self._say(line)
        self._last_line = line


def _error_of(action: Callable[[T], object], item: T) -> UserError | None:
    """Do an action; return the error that it raises for the store or the user."""
    try:
        action(item)
    except UserError as error:
        return error
    return None
