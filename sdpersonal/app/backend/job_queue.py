"""Queue the jobs for the one device: first come, first served, one batch of images at a time.

A long job yields to the others after each batch, so that nobody waits for sixteen images of another user. It
needs no `FairShare` as a fleet does: a user has one job in it at a time (`UserJobs`), and so a turn in every round.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ...errors import Interrupted, UserError

_POLL_SECONDS = 0.1  # seconds between checks whether a waiting job was stopped


@dataclass(eq=False)
class Job:
    """A job in the queue. is_exclusive: it gets its turn only while no other job is half done."""

    queue: JobQueue
    is_exclusive: bool = False
    started_at: float = field(default=0.0, init=False)  # time.monotonic() of its first turn

    @contextmanager
    def turn(
        self, cancelled: Callable[[], bool] = lambda: False, on_wait: Callable[[int], None] = lambda ahead: None
    ) -> Iterator[None]:
        """Wait for the job's turn and hold the device. Raises Interrupted if cancelled() becomes true first.

        on_wait(ahead): called before the first turn with the number of unfinished earlier jobs, whenever it changes.
        """
        self.queue.acquire(self, cancelled, (lambda ahead: None) if self.started_at else on_wait)
        try:
            yield
        finally:
            self.queue.release()


class JobQueue:
    """A queue of at most `max_jobs` jobs, including the running ones, of which `max_turns` run at the same time."""

    def __init__(self, max_jobs: int, max_turns: int = 1):
        self.max_jobs, self.max_turns = max_jobs, max_turns
        self.jobs: list[Job] = []
        self.condition = threading.Condition()
        self._waiting_jobs: deque[Job] = deque()
        self._turns = 0

    @contextmanager
    def job(self, alone: bool = False) -> Iterator[Job]:
        """Hold a place in the queue until the job is done. Raises UserError if the queue is full."""
        job = Job(self, alone)
        with self.condition:
            if len(self.jobs) >= self.max_jobs:
                raise UserError(f"The queue is full: {len(self.jobs)} jobs are waiting.", "Try again in a minute.")
            self.jobs.append(job)
        try:
            yield job
        finally:
            with self.condition:
                self.jobs.remove(job)
                self.condition.notify_all()

    def acquire(self, job: Job, cancelled: Callable[[], bool], on_wait: Callable[[int], None]) -> None:
        reported_ahead = None
        with self.condition:
            self._waiting_jobs.append(job)
            try:
                while self._turns >= self.max_turns or self._next() is not job:
                    if cancelled():
                        raise Interrupted("Stopped.")
                    if (ahead := self.jobs.index(job)) != reported_ahead:
                        on_wait(reported_ahead := ahead)
                    self.condition.wait(_POLL_SECONDS)
                self._turns, job.started_at = self._turns + 1, job.started_at or time.monotonic()
            finally:
                self._waiting_jobs.remove(job)

    def release(self) -> None:
        with self.condition:
            self._turns -= 1
            self.condition.notify_all()

    @property
    def is_wanted_alone(self) -> bool:
        """Whether an exclusive job waits for the others to end."""
        with self.condition:
            return any(job.is_exclusive for job in self._waiting_jobs)

    def wait_until_empty(self, seconds: float) -> bool:
        """Wait until no job is left, at most some seconds; return whether that is so."""
        with self.condition:
            return self.condition.wait_for(lambda: not self.jobs, seconds)

    def _next(self) -> Job | None:
        exclusive_waits = False  # an exclusive job waits: half-done jobs go on, new ones do not start
        for job in self._waiting_jobs:
            if job.is_exclusive and any(other.started_at for other in self.jobs if other is not job):
                exclusive_waits = True
            elif not exclusive_waits or job.started_at:
                return job
        return None
