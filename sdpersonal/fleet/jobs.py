"""Keep jobs: a folder of the store for each training, whose files say what state it is in. There is no database.

    jobs/ID/job.json          the settings and the names of the photos; written last, so a job without it is none
    jobs/ID/photos/0001 ...   the photos and the files beside them; removed when the concept is in the library
    jobs/ID/library/...       the concept to continue from, if the settings name one
    jobs/ID/attempts/1.json   who trains it and how far; the highest number is the one that counts
    jobs/ID/run/1/...         the copy that attempt 1 made of the run's folder, with its checkpoints
    jobs/ID/concept.safetensors, trained.json   the concept; trained.json is written last, by one attempt only
    jobs/ID/result.json       the token that the library gave it
    jobs/ID/failure.json      why it is not tried again
    jobs/ID/cancel            somebody does not want it any more

An ID is made of the token and the sha256 of the settings and photos, so that the same training given twice is one job.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from .. import storage
from ..concepts.library import Library
from ..config import TrainingSettings, settings_from_json, settings_to_json
from ..errors import UserError, printable
from ..photos.loading import list_files
from ..prompts import Token
from ..training.run_dir import to_number, to_text
from .driver_loop import MAX_DEATHS
from .store import Store

JOBS = "jobs"
MAX_LOSSES = 10  # workers in a row, without a new checkpoint: a job may take its machine down
_ID = re.compile(r"[a-z0-9-]{1,140}-[0-9a-f]{12}")
_MAX_PHOTO_BYTES = 200_000_000
_MAX_CONCEPT_BYTES = 4 << 30
_MAX_TEXT = 500
_SHORT_NAMES = {"tiny", "sd15", "sd21", "sdxl"}
_NOT_IN_ID = {"library", "run", "resume", "photos", "report_to"}


class JobState(StrEnum):
    """What a job's files say."""

    WAITING = "waiting"
    RUNNING = "running"
    TRAINED = "trained"  # the concept is in the store, not yet in the library
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Outcome(StrEnum):
    """How an attempt ended; "" while it runs, or if its machine is gone."""

    NONE = ""
    TRAINED = "trained"
    FAILED = "failed"  # trying again would not help
    DIED = "died"  # its process was killed, or ran out of memory
    LOST = "lost"  # its worker or machine was lost, which is seldom its own fault
    STOPPED = "stopped"  # the driver was stopped
    CANCELLED = "cancelled"
    REPLACED = "replaced"  # a later attempt has begun


@dataclass(frozen=True)
class Attempt:
    """One attempt at a job. session: of the driver that began it; beat: a count that grows while it lives; first: the
    step of the checkpoint it began from; saved: that of its newest checkpoint in the store; time: when the last beat
    was, in UTC, for people only: clocks of machines differ."""

    number: int
    session: str
    node: str = ""
    beat: int = 0
    time: str = ""
    step: int = 0
    steps: int = 0
    left: float = 0.0
    seconds: float = 0.0
    first: int = 0
    saved: int = 0
    outcome: Outcome = Outcome.NONE
    detail: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """What a finished job achieved. token: in the library; sha256: the concept's identity."""

    token: str
    sha256: str
    steps: int
    seconds: float


@dataclass(frozen=True)
class Failure:
    """Why a job or a request is not tried again."""

    exit_code: int
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: UserError) -> Failure:
        return cls(error.exit_code, error.message.replace("\n", "; "), error.hint.replace("\n", " "))


@dataclass(frozen=True)
class JobView:
    """A job as its files are now."""

    id: str
    state: JobState
    attempts: int = 0
    last: Attempt | None = None
    result: Result | None = None
    failure: Failure | None = None


class Job:
    """The folder of one job. Every method raises UserError where the store fails."""

    def __init__(self, store: Store, job_id: str):
        if not _ID.fullmatch(job_id):
            raise UserError(f"{printable(job_id)} is not a job of this fleet.", "See: sdpersonal fleet status")
        self.store, self.id, self.key = store, job_id, f"{JOBS}/{job_id}"

    # --- what it is ---------------------------------------------------------------------------------------------------

    def settings(self) -> TrainingSettings:
        """Return its settings; the paths of photos, library and run are the worker's to set."""
        return settings_from_json(dict(self._job_json().get("settings") or {}))

    @property
    def token(self) -> Token:
        return Token.parse(to_text((self._job_json().get("settings") or {}).get("token")))

    def download_inputs(self, photos: Path, library: Path) -> None:
        """Write the photos, and the concept to continue from, into two folders of this machine."""
        storage.make_folder(photos)
        for number, name in enumerate(self._job_json().get("photos") or [], 1):
            if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
                raise UserError(f"Job {self.id} names a photo {printable(repr(name), 60)}.", "Submit it anew.")
            data = self.store.read(f"{self.key}/photos/{number:04d}")
            if data is None:
                raise UserError(f"A photo of job {self.id} is not in the storage any more.", "Submit it anew.")
            storage.write_bytes(photos / name, data)
        for key in self.store.files(f"{self.key}/library"):
            path = storage.resolve_inside(library, key.removeprefix(f"{self.key}/library/"))
            storage.make_folder(path.parent)
            storage.write_bytes(path, self.store.read(key) or b"")

    def _job_json(self) -> dict[str, Any]:
        content = self.store.read_json(f"{self.key}/job.json")
        if content is None:
            raise UserError(f"There is no job {self.id}.", "See: sdpersonal fleet status")
        return content

    # --- its state ----------------------------------------------------------------------------------------------------

    def view(self) -> JobView:
        """Read its state."""
        names = set(self.store.names(self.key))
        numbers = self.attempt_numbers()
        last = self.attempt(numbers[-1]) if numbers else None
        view = JobView(self.id, JobState.WAITING, len(numbers), last)
        if "result.json" in names:
            return replace(view, state=JobState.DONE, result=self._read(Result, "result.json"))
        if "trained.json" in names:
            return replace(view, state=JobState.TRAINED, result=self._read(Result, "trained.json"))
        if "cancel" in names:
            return replace(view, state=JobState.CANCELLED)
        if "failure.json" in names:
            return replace(view, state=JobState.FAILED, failure=self._read(Failure, "failure.json"))
        return replace(view, state=JobState.RUNNING) if last and not last.outcome else view

    def _read(self, kind: type, name: str) -> Any:
        return _from_json(kind, self.store.read_json(f"{self.key}/{name}") or {})

    def is_cancelled(self) -> bool:
        return self.store.read(f"{self.key}/cancel") is not None

    def cancel(self) -> None:
        self.store.write(f"{self.key}/cancel", b"")

    def retry(self) -> None:
        """Forget failure, cancellation and earlier attempts; the checkpoints stay."""
        for name in ("attempts", "failure.json", "cancel"):
            self.store.remove(f"{self.key}/{name}")

    # --- attempts -----------------------------------------------------------------------------------------------------

    def attempt_numbers(self) -> list[int]:
        stems = (name.removesuffix(".json") for name in self.store.names(f"{self.key}/attempts"))
        return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdecimal() and len(stem) < 9)

    def attempt(self, number: int) -> Attempt | None:
        content = self.store.read_json(f"{self.key}/attempts/{number}.json")
        return None if content is None else _from_json(Attempt, content | {"number": number})

    def claim(self, session: str) -> Attempt | None:
        """Begin a new attempt; None if another driver has begun one in this moment."""
        copies = (int(name) for name in self.store.names(f"{self.key}/run") if name.isascii() and name.isdecimal())
        attempt = Attempt(max([0, *self.attempt_numbers(), *copies]) + 1, session)  # copies: of before a `retry`
        return attempt if self.store.write_new_json(self._attempt_key(attempt.number), attempt.as_json()) else None

    def update(self, attempt: Attempt) -> None:
        """Write what is known of an attempt."""
        self.store.write_json(self._attempt_key(attempt.number), attempt.as_json())

    def is_replaced(self, attempt: Attempt) -> bool:
        """Return whether a later attempt has begun, so that this one must not write any more."""
        return max(self.attempt_numbers(), default=0) > attempt.number

    def died_too_often(self) -> bool:
        """Return whether the last attempts all died without a new checkpoint, or lost so many workers."""
        deaths = losses = 0
        for number in reversed(self.attempt_numbers()):
            attempt = self.attempt(number)
            if attempt is None or attempt.saved > attempt.first:
                break
            deaths += attempt.outcome is Outcome.DIED  # an attempt that was stopped says nothing about the job
            losses += attempt.outcome is Outcome.LOST
        return deaths >= MAX_DEATHS or deaths + losses >= MAX_LOSSES

    def _attempt_key(self, number: int) -> str:
        return f"{self.key}/attempts/{number}.json"

    # --- how it ends --------------------------------------------------------------------------------------------------

    def write_failure(self, failure: Failure) -> None:
        self.store.write_new_json(f"{self.key}/failure.json", asdict(failure))

    def write_trained(self, result: Result, concept: bytes) -> None:
        """Put the concept into the store. Of several attempts the first counts; the file is named by its content."""
        self.store.write(f"{self.key}/concept-{result.sha256[:16]}.safetensors", concept)
        self.store.write_new_json(f"{self.key}/trained.json", asdict(result))

    def read_trained(self) -> tuple[Result, bytes]:
        """Return the finished concept's file. Raises UserError if it is not there."""
        result = self._read(Result, "trained.json")
        data = self.store.read(f"{self.key}/concept-{result.sha256[:16]}.safetensors")
        if data is None:
            raise UserError(f"The concept of job {self.id} is not in the storage any more.", "Submit it anew.")
        return result, data

    def write_result(self, result: Result) -> None:
        """Note that the concept is in the library, and remove the photos and checkpoints."""
        self.store.write_json(f"{self.key}/result.json", asdict(result))
        self.store.remove(f"{self.key}/photos")
        for folder in (f"{self.key}/run/{number}" for number in self.store.names(f"{self.key}/run")):
            for name in self.store.names(folder):
                if name.startswith("step-"):
                    self.store.remove(f"{folder}/{name}")


def _from_json(kind: Any, content: dict[str, Any]) -> Any:
    """Build a dataclass of this module from JSON; values of another type become the type's empty one."""
    values: dict[str, Any] = {}
    for field in fields(kind):
        value = content.get(field.name)
        if field.type == "str":
            values[field.name] = printable(value, _MAX_TEXT) if isinstance(value, str) else ""
        elif field.type == "Outcome":
            values[field.name] = Outcome(str(value)) if value in {*Outcome} else Outcome.NONE
        else:
            number = to_number(value)
            values[field.name] = int(number) if field.type == "int" else number
    return kind(**values)


# --- submission -------------------------------------------------------------------------------------------------------


def submit(store: Store, settings: TrainingSettings) -> Job:
    """Put a training into the store, unless it is there already. Raises UserError if its photos cannot be read."""
    photos, sidecars = list_files(settings.photos)
    names = [name for name in (*photos, *sorted(sidecars)) if (settings.photos / name).is_file()]
    contents = [storage.read_bytes(settings.photos / name, _MAX_PHOTO_BYTES) for name in names]
    settings = _with_absolute_paths(settings)
    job = Job(store, _job_id(settings, names, contents))
    if store.read(f"{job.key}/job.json") is not None:
        return job
    for number, data in enumerate(contents, 1):
        store.write(f"{job.key}/photos/{number:04d}", data)
    if settings.continue_from:
        _copy_concept(store, f"{job.key}/library", Library(settings.library), settings.continue_from)
    places = {"photos": Path("photos"), "library": Path("library"), "run": None, "resume": False}
    saved = settings_to_json(settings.model_copy(update=places))  # the paths of this machine concern no other
    store.write_json(f"{job.key}/job.json", {"settings": saved, "photos": names})
    return job


def all_jobs(store: Store) -> list[Job]:
    """List all jobs; of most fleets that is one look into a folder."""
    return [Job(store, name) for name in store.names(JOBS) if _ID.fullmatch(name)]


def _job_id(settings: TrainingSettings, names: Sequence[str], contents: Sequence[bytes]) -> str:
    what = {name: value for name, value in settings_to_json(settings).items() if name not in _NOT_IN_ID}
    photos = [[name, storage.sha256(data)] for name, data in zip(names, contents, strict=True)]
    return f"{Token.parse(settings.token).slug}-{storage.sha256(json.dumps([what, photos]).encode())[:12]}"


def absolute_base(base: str | None) -> str | None:
    """Return the name of a base as any working directory understands it."""
    is_path = base and base not in _SHORT_NAMES and Path(base).exists()
    return str(Path(base).absolute()) if base and is_path else base


def _with_absolute_paths(settings: TrainingSettings) -> TrainingSettings:
    """Make the paths of a model's files absolute: workers have other working directories."""
    changes: dict[str, object] = {"base": absolute_base(settings.base)}
    if settings.vae:
        changes["vae"] = settings.vae.absolute()
    prior = getattr(settings, "prior", "none")
    if prior not in ("none", "predicted", "generated"):
        changes["prior"] = str(Path(prior).absolute())
    return settings.model_copy(update=changes)


def _copy_concept(store: Store, key: str, library: Library, token: str) -> None:
    entry = library.find(token)
    path = f"{key}/{entry.token.owner}/{entry.path.name}"
    store.write(path, storage.read_bytes(entry.path, _MAX_CONCEPT_BYTES))
