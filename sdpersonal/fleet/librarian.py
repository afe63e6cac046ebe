"""Add finished concepts to the library, each exactly once, whatever dies when.

The driver does it, in one thread. If it dies between the addition and `result.json`, the next one adds the same concept
again, and the library answers with the token it gave before, since it knows the concept by its identity.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from ..concepts.concept_file import concept_from_bytes
from ..concepts.library import Library
from ..errors import UserError
from .jobs import Job, Result

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds between tries


def add_to_library(job: Job, library: Library) -> Result:
    """Add a trained job's concept to the library and note its token. Raises UserError, DiskFull."""
    result, data = job.read_trained()
    concept = concept_from_bytes(data, job.id)
    if concept.identity != result.sha256:
        raise UserError(f"The concept of job {job.id} is damaged in the storage.", f"sdpersonal fleet retry {job.id}")
    token = library.add(replace(concept, token=concept.token.unversioned()))
    result = replace(result, token=str(token))
    job.write_result(result)
    return result


class Librarian:
    """Adds concepts, and tries again later where the library or the store fails, without holding up the trainings."""

    def __init__(self, library: Path):
        self._library = Library(library)
        self._waiting: dict[str, tuple[Job, float, float]] = {}  # job, when to try, seconds to the try after that
        self.last_error: UserError | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, job: Job) -> None:
        """Note that a job's concept is in the store."""
        self._waiting.setdefault(job.id, (job, 0.0, _FIRST_PAUSE))

    def work(self) -> list[tuple[Job, Result]]:
        """Add what is due; return what was added."""
        added = []
        for job, due, pause in list(self._waiting.values()):
            if time.monotonic() < due:
                continue
            try:
                added.append((job, add_to_library(job, self._library)))
                del self._waiting[job.id]
                self.last_error = None
            except UserError as error:
                self.last_error = error
                self._waiting[job.id] = (job, time.monotonic() + pause, min(2 * pause, _LONGEST_PAUSE))
        return added
