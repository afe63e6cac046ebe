"""Keep the jobs of users who wait over the end of the app:

    outputs/[USER/].jobs/jobs.json          the running job and those that wait, in their order
    outputs/[USER/].jobs/damaged-....json   such a file that could not be read, set aside
    outputs/.jobs/.lock                     held by the app that has these folders; a second one keeps no jobs

Each image is noted before it is saved, by its mark. After a crash the last note tells whether that image is there, so
that none is made twice and none is missing.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ... import storage
from ...errors import UserError
from ...outputs import Outputs
from ...outputs.folder import content_mark
from .generate.gallery import Gallery
from .generate.jobs import quoted
from .generate.submission import JobRequest, plan_job
from .render_job import JobContext, JobPlan

FOLDER, FILE_NAME = ".jobs", "jobs.json"
MAX_STARTS = 2  # that may end with the app before the job's next image: then it is likely what ends the app
_MAX_JOBS, _MAX_MARKS = 60, 5000  # more than a user can have, and a job's images
_MAX_FILE = 8_000_000  # bytes
_LOCK_SECONDS = 10.0  # that an earlier app has to end
log = logging.getLogger(__name__)


class KeptJob(BaseModel):
    """A job as the file has it. marks: of the images that were saved, the last of which may be missing; starts: how
    often it has begun to run since its last image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    created: Annotated[float, Field(ge=0, lt=1e11)]
    request: JobRequest
    marks: Annotated[list[Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]], Field(max_length=_MAX_MARKS)] = []
    starts: Annotated[int, Field(ge=0, le=100)] = 0


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs: Annotated[list[KeptJob], Field(max_length=_MAX_JOBS)]


class KeptJobs:
    """The files of all users' jobs. Its methods raise nothing: a job runs also where it cannot be kept."""

    def __init__(self, gallery: Gallery):
        self._gallery = gallery
        self._release: Callable[[], None] | None = None

    @property
    def is_open(self) -> bool:
        return self._release is not None

    def open(self) -> bool:
        """Take the folders for this app; return False if another app has them."""
        try:
            self._release = storage.hold_lock(self._folder(None), timeout=_LOCK_SECONDS)
        except UserError as error:
            log.warning("Jobs that wait will end with this app: %s", error)
        return self.is_open

    def close(self) -> None:
        """Leave the folders to another app."""
        if self._release is not None:
            self._release()
            self._release = None

    def load(self, user: str | None) -> list[KeptJob]:
        """Return the user's jobs in their order. A damaged file is set aside."""
        path = self._folder(user) / FILE_NAME
        storage.remove_leftovers(path.parent)
        if not path.exists() and not path.is_symlink():
            return []
        try:
            return _parse(storage.read_bytes(path, _MAX_FILE))
        except (UserError, ValueError, RecursionError) as error:
            log.warning("The jobs in %s cannot be read, and are set aside: %s", path, type(error).__name__)
            with suppress(UserError):
                name = f"damaged-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}.json"
                storage.rename(path, path.with_name(name))
            return []

    def save(self, user: str | None, jobs: Sequence[dict[str, Any]]) -> None:
        """Write the user's jobs, each as for `KeptJob`."""
        path = self._folder(user) / FILE_NAME
        try:
            if jobs or path.exists():
                storage.make_folder(path.parent)
                storage.write_json(path, {"jobs": list(jobs)})
        except (UserError, ValueError) as error:
            log.warning("Jobs that wait cannot be kept: %s", error)

    def plan(self, user: str | None, job: KeptJob) -> JobPlan:
        """Plan the images of a job that are not made yet; expected is 0 where there are none. What cannot be planned
        any more becomes a plan that fails, and says why."""
        try:
            if job.starts >= MAX_STARTS:
                problem = f"The app has ended {job.starts} times while it made this job's next image."
                raise UserError(problem, "Generate it again if you know why.")
            return plan_job(job.request, self._gallery, user, len(self.saved_marks(user, job)))
        except Exception as error:
            return _failing_plan(job, error)

    def saved_marks(self, user: str | None, job: KeptJob) -> list[str]:
        """Return the marks of the job's images that were saved."""
        marks = list(job.marks)
        if marks and not any(self._gallery.outputs(user).marked(marks[-1])):
            del marks[-1]
        return marks

    def _folder(self, user: str | None) -> Path:
        return self._gallery.outputs(user).folder / FOLDER


class NotedOutputs(Outputs):
    """The outputs of one job. marks: of the images that it has saved already, which are not saved twice; note: called
    with an image's mark before it is saved."""

    def __init__(self, outputs: Outputs, marks: Sequence[str], note: Callable[[str], None]):
        super().__init__(outputs.folder)
        self._saved, self._note = frozenset(marks), note

    def save(self, data: bytes) -> Path:
        mark = content_mark(data)
        if mark in self._saved and (path := next(self.marked(mark), None)):
            return path
        self._note(mark)
        return super().save(data)


def _parse(data: bytes) -> list[KeptJob]:
    """Raises ValueError, RecursionError."""
    jobs = _Content.model_validate(json.loads(data)).jobs
    if len({job.id for job in jobs}) < len(jobs):
        raise ValueError("two jobs have one id")
    return jobs


def _failing_plan(job: KeptJob, error: Exception) -> JobPlan:
    def work(context: JobContext) -> None:
        raise error

    prompt = job.request.form.get("prompt")
    title = f"A job from before: {quoted(prompt)}" if isinstance(prompt, str) and prompt else "A job from before"
    return JobPlan(job.request.kind, title, 1, work)
