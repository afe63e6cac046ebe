"""Whose turn it is on the one device: first come, first served, one batch of pictures at a time.

A long job gives way to the others after each batch, so that nobody waits for sixteen pictures of another.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ...errors import Interrupted, UserError

_POLL_SECONDS = 0.1  # seconds between looks at whether one who waits has given up


@dataclass(eq=False)
class Job:
    """One who stands in the line. alone: has its turn only while no other job is half done."""

    line: JobQueue
    alone: bool = False
    started_at: float = field(default=0.0, init=False)  # time.monotonic() of its first turn

    @contextmanager
    def turn(
        self, given_up: Callable[[], bool] = lambda: False, waits: Callable[[int], None] = lambda ahead: None
    ) -> Iterator[None]:
        """Wait for it, and have the device to oneself. Raises Interrupted where given_up() becomes true first.

        waits(ahead): told, before the first turn, how many came earlier and have not ended, whenever that changes.
        """
        self.line.take(self, given_up, (lambda ahead: None) if self.started_at else waits)
        try:
            yield
        finally:
            self.line.leave()


class JobQueue:
    """most: jobs that may stand in it, the one being done among them."""

    def __init__(self, most: int):
        self.most = most
        self.jobs: list[Job] = []
        self.change = threading.Condition()
        self._waiting_jobs: deque[Job] = deque()
        self._busy = False

    @contextmanager
    def job(self, alone: bool = False) -> Iterator[Job]:
        """Stand in the line until all is done. Raises UserError where it is full."""
        job = Job(self, alone)
        with self.change:
            if len(self.jobs) >= self.most:
                raise UserError(
                    f"It is busy: {len(self.jobs)} drawings are in the line already.", "Try again in a minute."
                )
            self.jobs.append(job)
        try:
            yield job
        finally:
            with self.change:
                self.jobs.remove(job)
                self.change.notify_all()

    def take(self, job: Job, given_up: Callable[[], bool], waits: Callable[[int], None]) -> None:
        told = None
        with self.change:
            self._waiting_jobs.append(job)
            try:
                while self._busy or self._next() is not job:
                    if given_up():
                        raise Interrupted("Stopped.")
                    if (ahead := self.jobs.index(job)) != told:
                        waits(told := ahead)
                    self.change.wait(_POLL_SECONDS)
                self._busy, job.started_at = True, job.started_at or time.monotonic()
            finally:
                self._waiting_jobs.remove(job)

    def leave(self) -> None:
        with self.change:
            self._busy = False
            self.change.notify_all()

    def _next(self) -> Job | None:
        held = False  # one who must be alone waits: what is half done goes on, nothing new begins
        for job in self._waiting_jobs:
            if job.alone and any(each.started_at for each in self.jobs if each is not job):
                held = True
            elif not held or job.started_at:
                return job
        return None
