"""The driver hands out the jobs, fairly among their owners, and adds finished concepts to the library.

It keeps nothing that is not in the store: when it dies, its workers end, and the same command again goes on with every
job from its newest checkpoint. An attempt of another driver counts as given up when its beat has not changed for as
long as this driver has watched it; no clocks of two machines are compared.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Protocol, TypeVar

from ..display.units import format_duration
from ..errors import DiskFull, Diverged, Interrupted, UserError
from ..prompts import Token
from .jobs import MAX_DEATHS, Attempt, Failure, Job, JobState, JobView, Outcome, Result
from .library_writer import LibraryWriter
from .worker import Ended

CRASHED = 1  # exit code of a job whose process or machine died too often
_SEVERITY = (0, UserError.exit_code, Diverged.exit_code, CRASHED, DiskFull.exit_code, Interrupted.exit_code)
_LOST = "Its worker was lost."
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
class Tracked:
    """A job as the driver knows it. watched: the beat of another driver's attempt, and since when it is unchanged."""

    job: Job
    token: str
    state: JobState = JobState.WAITING
    attempt: Attempt | None = None
    attempts: int = 0
    result: Result | None = None
    failure: Failure | None = None
    watched: tuple[tuple[int, int], float] | None = None
    seconds: float = 0.0  # from this driver's first attempt to the end
    began: float = 0.0

    @cached_property
    def owner(self) -> str:
        return Token.parse(self.token).owner or ""

    @property
    def is_over(self) -> bool:
        return self.state in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)

    @property
    def exit_code(self) -> int:
        if self.state is JobState.FAILED:
            code = self.failure.exit_code if self.failure else CRASHED
            return code if code in _SEVERITY else CRASHED
        return 0 if self.state is JobState.DONE else Interrupted.exit_code


@dataclass
class DriverOptions:
    """beat_seconds: between two looks at the running jobs; lease_seconds: after which an attempt of another driver
    without a new beat counts as given up; library_patience: seconds to try to add concepts when all else is done."""

    beat_seconds: float = 5.0
    lease_seconds: float = 30.0
    library_patience: float = 900.0
    session: str = field(default_factory=lambda: secrets.token_hex(8))


class Driver:
    """Trains jobs with a pool of workers.

    on_event: called with a line for the user when something happens; on_change: with all jobs, every beat.
    """

    def __init__(
        self,
        jobs: Mapping[str, Job],
        pool: WorkerPool,
        library: LibraryWriter,
        options: DriverOptions,
        on_event: Callable[[str], None] = lambda line: None,
        on_change: Callable[[Sequence[Tracked]], None] = lambda jobs: None,
    ):
        """jobs: by the tokens of their concepts."""
        self.tracked = {job.id: Tracked(job, token) for token, job in jobs.items()}
        self._pool, self._library, self._options = pool, library, options
        self._say, self._on_change = on_event, on_change
        self._started: Counter[str] = Counter()  # by owner
        self._ended: list[Ended] = []  # what the store could not be told yet
        self._lines: deque[str] = deque()  # for the user, from all threads
        self._threads = ThreadPoolExecutor(_THREADS, "store")
        self._looked_at = -math.inf
        self._library_waits_since = 0.0
        self._last_line = ""

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Train until every job is over; return the exit code of the worst. Raises DiskFull if concepts could not be
        added to the library, UserError if no worker can be started."""
        for _ in self._threads.map(self._read, self.tracked.values()):
            pass
        try:
            while not all(tracked.is_over for tracked in self.tracked.values()):
                self._round()
        except KeyboardInterrupt:
            self._stop()
            raise
        finally:
            self._show()
            self._threads.shutdown(wait=False, cancel_futures=True)
        return self.exit_code()

    def exit_code(self) -> int:
        return max((tracked.exit_code for tracked in self.tracked.values()), key=_SEVERITY.index, default=0)

    def _round(self) -> None:
        self._start_jobs()
        self._end_attempts(self._pool.wait(min(1.0, self._options.beat_seconds)))
        self._add_to_library()
        if time.monotonic() - self._looked_at >= self._options.beat_seconds:
            self._looked_at = time.monotonic()
            self._read_beats()
            self._show()

    def _show(self) -> None:
        with suppress(UserError):  # the page is in the store
            self._on_change(list(self.tracked.values()))

    def _stop(self) -> None:
        """End all trainings with a checkpoint; another Ctrl-C ends the waiting."""
        self._say("Stopping after this step; again stops at once.")
        self._pool.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        while any(map(self._is_ours, self.tracked.values())) and time.monotonic() < deadline:
            self._end_attempts(self._pool.wait(1.0))

    def _try_all(self, action: Callable[[T], object], items: Sequence[T]) -> list[T]:
        """Do what can be done a beat later as well for several jobs at once; return those of which the store let it
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

    # --- starting -----------------------------------------------------------------------------------------------------

    def _start_jobs(self) -> None:
        chosen = self._choose(self._pool.free())
        self._try_all(self._claim, chosen)
        for tracked in chosen:
            if self._is_ours(tracked) and tracked.attempt:
                self._started[tracked.owner] += 1
                self._pool.start(tracked.job.id, tracked.attempt.number)

    def _choose(self, count: int) -> list[Tracked]:
        """Return waiting jobs to start: each of the owner with the fewest running ones, and of those with the fewest
        started."""
        if not count:
            return []
        waiting: dict[str, deque[Tracked]] = {}
        for tracked in self.tracked.values():
            if tracked.state is JobState.WAITING:
                waiting.setdefault(tracked.owner, deque()).append(tracked)
        running = Counter(tracked.owner for tracked in self.tracked.values() if self._is_ours(tracked))
        started = Counter(self._started)
        chosen: list[Tracked] = []
        while waiting and len(chosen) < count:
            owner = min(waiting, key=lambda owner: (running[owner], started[owner]))
            chosen.append(waiting[owner].popleft())
            running[owner] += 1
            started[owner] += 1
            if not waiting[owner]:
                del waiting[owner]
        return chosen

    def _claim(self, tracked: Tracked) -> None:
        """Begin an attempt at a job, unless it was cancelled or another driver has it."""
        view = tracked.job.view()
        is_lost = view.state is JobState.RUNNING and view.last and view.last.session == self._options.session
        if view.state is not JobState.WAITING and not is_lost:
            self._read(tracked, view)  # it was cancelled, or another driver has it
            return
        attempt = tracked.job.claim(self._options.session)
        if attempt is None:
            return
        tracked.state, tracked.attempt, tracked.attempts = JobState.RUNNING, attempt, tracked.attempts + 1
        tracked.began = tracked.began or time.monotonic()

    def _is_ours(self, tracked: Tracked) -> bool:
        is_running, attempt = tracked.state is JobState.RUNNING, tracked.attempt
        return is_running and attempt is not None and attempt.session == self._options.session

    # --- while jobs run -----------------------------------------------------------------------------------------------

    def _read(self, tracked: Tracked, view: JobView | None = None) -> None:
        """Take over what a job's files say."""
        view = view or tracked.job.view()
        tracked.state, tracked.attempt, tracked.attempts = view.state, view.last, view.attempts
        tracked.result, tracked.failure = view.result, view.failure
        if view.state is JobState.TRAINED:
            self._library.add_later(tracked.job)

    def _read_beats(self) -> None:
        running = [tracked for tracked in self.tracked.values() if tracked.state is JobState.RUNNING]
        self._try_all(self._read_beat, running)

    def _read_beat(self, tracked: Tracked) -> None:
        if self._is_ours(tracked) and tracked.attempt:
            tracked.attempt = tracked.job.attempt(tracked.attempt.number) or tracked.attempt
            return
        self._read(tracked)
        attempt = tracked.attempt
        if tracked.state is not JobState.RUNNING or attempt is None:
            return
        beat, now = (attempt.number, attempt.beat), time.monotonic()
        if tracked.watched is None or tracked.watched[0] != beat:
            tracked.watched = beat, now
        elif now - tracked.watched[1] > self._options.lease_seconds:
            tracked.job.update(replace(attempt, outcome=Outcome.STOPPED, detail="Its driver stopped."))
            tracked.state = JobState.WAITING

    def _end_attempts(self, ended: Sequence[Ended]) -> None:
        self._ended = self._try_all(self._end, [*self._ended, *ended])

    def _end(self, ended: Ended) -> None:
        """Note how an attempt ended, in the store too."""
        tracked = self.tracked[ended.task_id]
        attempt: Attempt | None = ended.answer
        if attempt is None and tracked.attempt is not None:  # the worker could not write it itself
            attempt = tracked.job.attempt(tracked.attempt.number) or tracked.attempt
            attempt = replace(attempt, outcome=Outcome.DIED, detail=ended.error or _LOST)
        if attempt is None:
            return
        if attempt.outcome is Outcome.DIED:
            self._end_dead(tracked, attempt)
        elif attempt.outcome in (Outcome.STOPPED, Outcome.NONE):
            tracked.state, tracked.attempt = JobState.WAITING, attempt
        else:
            self._read(tracked)
            tracked.seconds = time.monotonic() - tracked.began
            if tracked.failure:
                self._lines.append(f"{tracked.token}: {tracked.failure.message}")

    def _end_dead(self, tracked: Tracked, attempt: Attempt) -> None:
        tracked.job.update(attempt)
        tracked.attempt = attempt
        if tracked.job.died_too_often():
            message = f"It died {MAX_DEATHS} times without getting on, at last: {attempt.detail}"
            tracked.job.write_failure(Failure(CRASHED, message, f"sdpersonal fleet retry {tracked.job.id}"))
            self._read(tracked)
            self._lines.append(f"{tracked.token}: {message}")
        else:
            tracked.state = JobState.WAITING
            self._lines.append(f"{tracked.token}: {attempt.detail} It goes on from step {attempt.saved}.")

    # --- the library --------------------------------------------------------------------------------------------------

    def _add_to_library(self) -> None:
        for job, result in self._library.add_due(self._threads):
            tracked = self.tracked[job.id]
            tracked.state, tracked.result = JobState.DONE, result
            over = sum(other.is_over for other in self.tracked.values())
            self._say(f"{result.token}: done in {format_duration(result.seconds)}, {over} of {len(self.tracked)}.")
        if error := self._library.last_error:
            self._say_once(f"{error.message} The concept waits in the storage; trying again.")
        if not error or any(t.state in (JobState.WAITING, JobState.RUNNING) for t in self.tracked.values()):
            self._library_waits_since = time.monotonic()
        elif time.monotonic() - self._library_waits_since > self._options.library_patience:
            hint = "The same command again adds what is trained."
            raise type(error)(error.message, hint) if isinstance(error, DiskFull) else UserError(error.message, hint)


def _error_of(action: Callable[[T], object], item: T) -> UserError | None:
    """Do an action; return the error that it raises for the store or the user."""
    try:
        action(item)
    except UserError as error:
        return error
    return None
