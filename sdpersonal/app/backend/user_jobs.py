"""Hold each user's jobs in a line, and run them one after the other.

A thread for each user who has work takes the first job of the line; the jobs of several users then take turns on the
device (`JobQueue`), so that a user with fifty jobs delays the others no more than a user with one.

What waits when the app ends, and the rest of what runs, is taken up again by the next one (`KeptJobs`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ...errors import Interrupted, UserError
from ...outputs import Outputs
from .error_text import describe_error
from .events import EventHub
from .generate.gallery import Gallery
from .generation_service import MAX_JOBS, GenerationService, count_text
from .kept_jobs import KeptJobs, NotedOutputs
from .live_job import LiveJob, Reports, Throttle
from .render_job import JobPlan, StepAside

MAX_WAITING = 50  # jobs of one user that wait
MAX_ENDED = 20  # jobs of one user that are still listed after they ended
MAX_USERS = MAX_JOBS  # users who have work at the same time
_END_SECONDS = 3.0  # that jobs have to end when the app ends: a step of the model takes as long as it takes
_EVENT_SECONDS = 0.5  # between two events about a user's jobs


@dataclass
class _Line:
    """The jobs of one user. is_served: whether a thread runs them; is_kept: whether they outlive the app; left: those
    that do, once the app ends; file_content: of their file."""

    user: str | None
    jobs_changed: Throttle
    waiting: list[LiveJob] = field(default_factory=list)
    running: LiveJob | None = None
    ended: deque[LiveJob] = field(default_factory=lambda: deque(maxlen=MAX_ENDED))
    is_served: bool = False
    is_kept: bool = False
    left: list[LiveJob] | None = None
    file_content: list[dict[str, Any]] | None = None
    file_lock: threading.Lock = field(default_factory=threading.Lock)  # taken before that of all lines

    def find(self, job_id: str) -> LiveJob:
        """Return a waiting or running job. Raises UserError if there is none with this id."""
        for job in (*self.waiting, *filter(None, [self.running])):
            if job.id == job_id:
                return job
        raise UserError("This job has ended already.")

    def to_keep(self) -> list[dict[str, Any]]:
        """Return the jobs that outlive the app, as their file has them."""
        if self.left is None:
            jobs = [*filter(None, [self.running]), *self.waiting]
        else:  # all are stopped, which does not count
            jobs = [job for job in self.left if job.state not in ("done", "failed")]
        return [content for job in jobs if (content := job.content(self.left is not None)) is not None]


class UserJobs:
    """The jobs of all users. Methods may be called from any thread, and raise UserError."""

    def __init__(self, generation: GenerationService, gallery: Gallery, events: EventHub):
        self._generation, self._gallery, self._events = generation, gallery, events
        self._kept = KeptJobs(gallery)
        self._lines: dict[str | None, _Line] = {}
        self._lock = threading.Condition(threading.RLock())
        self._is_closed = False

    def submit(self, user: str | None, plan: JobPlan) -> LiveJob:
        """Put a job at the end of the user's line."""
        with self._lock:
            line = self._line(user)
            if self._is_closed:
                raise UserError("The app is closing.", "Start it again.")
            if len(line.waiting) >= MAX_WAITING:
                raise UserError(f"You have {MAX_WAITING} jobs waiting already.", "Wait for one, or cancel some.")
            if not line.is_served and sum(other.is_served for other in self._lines.values()) >= MAX_USERS:
                raise UserError(f"The queue is full: {MAX_USERS} users have jobs in it.", "Try again in a minute.")
            job = LiveJob(plan, self._reports(user, line))
            line.waiting.append(job)
            self._start_thread(line)
            self._changed(line)
        self._save(line)
        return job

    def restore(self, users: Iterable[str | None]) -> None:
        """Take up the jobs that these users had when the app ended, before those of now, and keep all from here on.
        Another app that has the same folders keeps its own."""
        if not self._kept.open():
            return
        for user in users:
            jobs = [(job, self._kept.plan(user, job)) for job in self._kept.load(user)]
            with self._lock:
                if self._is_closed:
                    return
                line = self._line(user)
                reports, line.is_kept = self._reports(user, line), True
                line.waiting[:0] = [
                    LiveJob(plan, reports, job, self._kept.saved_marks(user, job))
                    for job, plan in jobs
                    if plan.expected != 0
                ]
                self._start_thread(line)
                self._changed(line)
            self._save(line)

    def cancel(self, user: str | None, job_id: str) -> None:
        """Remove a waiting job, or end the running one at its next step; finished images stay."""
        with self._lock:
            line = self._line(user)
            self._cancel(line, line.find(job_id))
            self._changed(line)
        self._save(line)

    def move(self, user: str | None, job_id: str, before: str | None) -> None:
        """Move a waiting job before another waiting one, or to the end of the line."""
        with self._lock:
            line = self._line(user)
            job = line.find(job_id)
            if job not in line.waiting:
                raise UserError("This job runs already.")
            target = line.find(before) if before is not None else None
            if target is job:
                return
            line.waiting.remove(job)
            line.waiting.insert(line.waiting.index(target) if target in line.waiting else _end_of(line, target), job)
            self._changed(line)
        self._save(line)

    def stop(self, user: str | None) -> None:
        """End the running job and remove those that wait."""
        with self._lock:
            line = self._line(user)
            for job in [*line.waiting, *filter(None, [line.running])]:
                self._cancel(line, job)
            self._changed(line)
        self._save(line)

    def views(self, user: str | None) -> list[dict[str, Any]]:
        """Return the user's jobs as the page shows them: running, waiting in their order, ended with the newest
        first."""
        with self._lock:
            line = self._lines.get(user)
            if line is None:
                return []
            ahead = line.running.ahead if line.running else 0
            jobs = [*filter(None, [line.running]), *line.waiting, *reversed(line.ended)]
            return [job.view(ahead if job.state == "waiting" else 0) for job in jobs]

    def follow(self, job: LiveJob, seconds: float = _EVENT_SECONDS) -> Iterator[dict[str, Any]]:
        """Yield the job's view whenever it changes, at most once in some seconds, until it has ended; the last one
        says how. Closing the iterator leaves the job as it is."""
        before: dict[str, Any] | None = None
        while True:
            with self._lock:
                view, has_ended = job.view(job.ahead), job.has_ended
            if view != before:
                yield view
            if has_ended:
                return
            before = view
            with self._lock:
                self._lock.wait_for(lambda: job.has_ended, seconds)

    def update_images(self, user: str | None, ids: list[str], favourite: bool | None = None) -> None:
        """Mark images of the user's jobs as favourites or not; None: forget those that were deleted."""
        with self._lock:
            if (line := self._lines.get(user)) is None:
                return
            for job in (*line.waiting, *line.ended, *filter(None, [line.running])):
                job.update_images(set(ids), favourite)
            self._changed(line)

    def close(self) -> None:
        """End all jobs when the app ends, and wait a little for them; later ones are refused."""
        with self._lock:
            self._is_closed = True
            lines = [*self._lines.values()]
            for line in lines:
                line.left = [*filter(None, [line.running]), *line.waiting]
        for line in lines:
            self.stop(line.user)
        self._generation.wait_until_idle(_END_SECONDS)
        for line in lines:
            self._save(line)
        self._kept.close()

    # --- running ------------------------------------------------------------------------------------------------------

    def _line(self, user: str | None) -> _Line:
        if user not in self._lines:

            def publish() -> None:
                if self._events.is_watched(user):
                    self._events.publish(user, "jobs", {"jobs": self.views(user)})

            self._lines[user] = _Line(user, Throttle(_EVENT_SECONDS, publish))
        return self._lines[user]

    def _reports(self, user: str | None, line: _Line) -> Reports:
        return Reports(
            self._lock,
            line.jobs_changed,
            lambda: bool(line.waiting) or self._generation.is_wanted_alone(),
            lambda: self._events.is_watched(user),
            lambda kind, data, key: self._events.publish(user, kind, data, key),
            lambda path: self._gallery.entry_of_file(user, path),
        )

    def _changed(self, line: _Line) -> None:
        self._lock.notify_all()
        line.jobs_changed()

    def _save(self, line: _Line) -> None:
        """Write the user's jobs to their file if it has others. Called without the lock of the lines."""
        with line.file_lock:
            with self._lock:
                jobs = line.to_keep()
            if line.is_kept and self._kept.is_open and jobs != line.file_content:
                self._kept.save(line.user, jobs)
                line.file_content = jobs

    def _cancel(self, line: _Line, job: LiveJob) -> None:
        job.stop()
        if job in line.waiting:
            line.waiting.remove(job)
            self._end(line, job, "stopped", _stopped_text(job))

    def _start_thread(self, line: _Line) -> None:
        """Start the line's thread if it has work and none; later if too many users have work."""
        is_full = sum(other.is_served for other in self._lines.values()) >= MAX_USERS
        if line.waiting and not line.is_served and not is_full:
            line.is_served = True
            threading.Thread(target=self._serve, args=(line,), name="user's jobs", daemon=True).start()

    def _serve(self, line: _Line) -> None:
        while job := self._next(line):
            self._save(line)
            outcome = self._run(line, job)
            with self._lock:
                line.running = None
                if outcome is None and not job.is_stopped():
                    job.state = "waiting"
                    line.waiting.append(job)
                else:
                    self._end(line, job, *(outcome or ("stopped", _stopped_text(job))))
                self._changed(line)
            self._save(line)

    def _next(self, line: _Line) -> LiveJob | None:
        """Take the first waiting job; without one, the user's thread ends."""
        with self._lock:
            line.running = line.waiting.pop(0) if line.waiting else None
            line.is_served = line.running is not None
            if line.running is not None:
                line.running.starts += 1
            else:  # another user may wait for this thread
                for other in self._lines.values():
                    self._start_thread(other)
            return line.running

    def _run(self, line: _Line, job: LiveJob) -> tuple[str, str] | None:
        """Run a job; return its state and its final message, None if it stepped aside."""
        try:
            return "done", self._generation.run(job.plan.work, job, self._outputs(line, job))
        except StepAside:
            return None
        except Interrupted:
            return "stopped", _stopped_text(job)
        except Exception as error:
            return "failed", describe_error(error)

    def _outputs(self, line: _Line, job: LiveJob) -> Outputs:
        """Return the outputs of a job, which note its images before they are saved, if it is kept."""
        outputs = self._gallery.outputs(line.user)
        if job.plan.request is None:
            return outputs

        def note(mark: str) -> None:
            job.note_mark(mark)
            self._save(line)

        return NotedOutputs(outputs, job.marks, note)

    def _end(self, line: _Line, job: LiveJob, state: str, message: str) -> None:
        job.end(state, message)
        line.ended.append(job)


def _end_of(line: _Line, target: LiveJob | None) -> int:
    """Return the index for a job that is moved before none, or before the running job."""
    return len(line.waiting) if target is None else 0


def _stopped_text(job: LiveJob) -> str:
    return f"Stopped. {count_text(job.image_count)} finished and saved." if job.image_count else "Stopped."
