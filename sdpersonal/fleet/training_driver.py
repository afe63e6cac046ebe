"""The driver of trainings hands out jobs, fairly among their owners, and adds finished concepts to the library.

When it dies, the same command again goes on with every job from its newest checkpoint. An attempt of another driver
counts as given up when its beat has not changed for as long as this driver has watched it; no clocks of two machines
are compared.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..display.units import format_duration
from ..errors import Interrupted, UserError
from ..prompts import Token
from .driver_loop import CRASHED, LOST, SEVERITY, DriverLoop, DriverOptions, WorkerPool
from .fair_share import FairShare
from .jobs import Attempt, Failure, Job, JobState, JobView, Outcome, Result
from .library_writer import LibraryWriter
from .worker import Ended


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
            return code if code in SEVERITY else CRASHED
        return 0 if self.state is JobState.DONE else Interrupted.exit_code


class TrainingDriver(DriverLoop):
    """Trains jobs with a pool of workers.

    on_event: called with a line for the user when something happens; on_change: with all jobs, every beat.
    """

    finishes = "adds what is trained"

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
        super().__init__(pool, options, on_event)
        self.tracked = {job.id: Tracked(job, token) for token, job in jobs.items()}
        self._library, self._on_change = library, on_change
        self._fair_share = FairShare()  # of the owners

    def is_over(self) -> bool:
        return all(tracked.is_over for tracked in self.tracked.values())

    def exit_code(self) -> int:
        return max((tracked.exit_code for tracked in self.tracked.values()), key=SEVERITY.index, default=0)

    def _begin(self) -> None:
        for _ in self._threads.map(self._read, self.tracked.values()):
            pass

    def _is_busy(self) -> bool:
        return any(tracked.state in (JobState.WAITING, JobState.RUNNING) for tracked in self.tracked.values())

    def _has_own_running(self) -> bool:
        return any(map(self._is_ours, self.tracked.values()))

    def _on_beat(self) -> None:
        self._on_change(list(self.tracked.values()))

    # --- starting -----------------------------------------------------------------------------------------------------

    def _start_tasks(self) -> None:
        chosen = self._choose(self._pool.free())
        self._try_all(self._claim, chosen)
        for tracked in chosen:
            if self._is_ours(tracked) and tracked.attempt:
                self._pool.start(tracked.job.id, tracked.attempt.number)

    def _choose(self, count: int) -> list[Tracked]:
        """Return waiting jobs to start, at most `count`: each is the first of the owner whose turn it is."""
        if not count:
            return []
        waiting: dict[str, deque[Tracked]] = {}
        for tracked in self.tracked.values():
            if tracked.state is JobState.WAITING:
                waiting.setdefault(tracked.owner, deque()).append(tracked)
        running = Counter(tracked.owner for tracked in self.tracked.values() if self._is_ours(tracked))
        chosen: list[Tracked] = []
        while waiting and len(chosen) < count:
            owner = self._fair_share.choose(waiting, running)
            chosen.append(waiting[owner].popleft())
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

    def _look(self) -> None:
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

    def _end(self, ended: Ended) -> None:
        """Note how an attempt ended, in the store too."""
        tracked = self.tracked[ended.task_id]
        attempt: Attempt | None = ended.answer
        if attempt is None and tracked.attempt is not None:  # the worker could not write it itself
            attempt = tracked.job.attempt(tracked.attempt.number) or tracked.attempt
            outcome = Outcome.DIED if ended.error else Outcome.LOST
            attempt = replace(attempt, outcome=outcome, detail=ended.error or LOST)
        if attempt is None:
            return
        if attempt.outcome in (Outcome.DIED, Outcome.LOST):
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
            message = f"It died too often without a new checkpoint, at last: {attempt.detail}"
            tracked.job.write_failure(Failure(CRASHED, message, f"sdpersonal fleet retry {tracked.job.id}"))
            self._read(tracked)
            self._lines.append(f"{tracked.token}: {message}")
        else:
            tracked.state = JobState.WAITING
            self._lines.append(f"{tracked.token}: {attempt.detail} It goes on from step {attempt.saved}.")

    # --- the library --------------------------------------------------------------------------------------------------

    def _add_finished(self) -> UserError | None:
        for job, result in self._library.add_due(self._threads):
            tracked = self.tracked[job.id]
            tracked.state, tracked.result = JobState.DONE, result
            over = sum(other.is_over for other in self.tracked.values())
            self._say(f"{result.token}: done in {format_duration(result.seconds)}, {over} of {len(self.tracked)}.")
        return self._library.last_error
