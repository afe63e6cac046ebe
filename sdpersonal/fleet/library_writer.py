"""Add finished concepts to the library, each exactly once, whatever dies when."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..concepts.concept_file import concept_from_bytes
from ..concepts.library import Library
from ..errors import UserError
from .adder import Adder
from .jobs import Job, Result


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


class LibraryWriter(Adder[Job, Result]):
    """Adds concepts to a library."""

    def __init__(self, library: Path):
        lock = threading.Lock()  # of the library: what is slow is the store
        super().__init__(partial(add_to_library, library=Library(library), lock=lock))
