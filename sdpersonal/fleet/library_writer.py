"""Add finished concepts to the library, each exactly once, whatever dies when.

The driver does it. If it dies between the addition and `result.json`, the next one adds the same concept again, and the
library answers with the token it gave before, since it knows the concept by its identity.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from ..concepts.concept_file import concept_from_bytes
from ..concepts.library import Library
from ..errors import UserError
from .jobs import Job, Result

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds between tries


def add_to_library(job: Job, library: Library, lock: threading.Lock | None = None) -> Result:
    """Add a trained job's concept to the library and note its token. lock: held while the library changes.

    Raises UserError, DiskFull.
    """
    result, data = job.read_trained()
    concept = concept_from_bytes(data, job.id)
    if concept.identity != result.sha256:
        raise UserError(f"The concept of job {job.id} is damaged in the storage.", f"sdpersonal fleet retry {job.id}")
    with lock or nullcontext():
        token = library.add(replace(concept, token=concept.token.unversioned()))
    result = replace(result, token=str(token))
    job.write_result(result)
    return result


@dataclass
class _Waiting:
    """A trained job. due: when its concept is to be added; pause: seconds to the try after that."""

    job: Job
    due: float = 0.0
    pause: float = _FIRST_PAUSE


class LibraryWriter:
    """Adds concepts, and tries again later where the library or the store fails, without holding up the trainings."""

    def __init__(self, library: Path):
        self._library = Library(library)
        self._lock = threading.Lock()  # of the library: what is slow is the store
        self._waiting: dict[str, _Waiting] = {}
        self.last_error: UserError | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add_later(self, job: Job) -> None:
        """Note that a job's concept is in the store."""
        self._waiting.setdefault(job.id, _Waiting(job))

    def add_due(self, threads: Executor) -> list[tuple[Job, Result]]:
        """Add what is due; return what was added."""
        added = []
        due = [entry for entry in self._waiting.values() if time.monotonic() >= entry.due]
        for entry, outcome in zip(due, threads.map(self._try_to_add, due), strict=True):
            if isinstance(outcome, Result):
                added.append((entry.job, outcome))
                del self._waiting[entry.job.id]
                self.last_error = None
            else:
                self.last_error = outcome
                entry.due, entry.pause = time.monotonic() + entry.pause, min(2 * entry.pause, _LONGEST_PAUSE)
        return added

    def _try_to_add(self, entry: _Waiting) -> Result | UserError:
        try:
            return add_to_library(entry.job, self._library, self._lock)
        except UserError as error:
            return error
