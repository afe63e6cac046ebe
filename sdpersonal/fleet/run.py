"""Train a list of concepts on a fleet, from settings to a table of results; look after its jobs from outside."""

from __future__ import annotations

import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import storage
from ..config import TrainingSettings
from ..errors import UserError, printable
from ..prompts import Token
from .cluster import Needs, RayPool, check_installed, connect, local_cpus
from .driver_loop import DriverOptions, Summary
from .jobs import Job, JobView, all_jobs, submit
from .library_writer import LibraryWriter
from .progress import PAGE, summarize, write_trainings
from .store import Store, open_store
from .training_driver import Tracked, TrainingDriver
from .training_worker import TrainingOptions, TrainingWorker
from .worker import MARKER, Worker, WorkerOptions

_BEAT, _LOCAL_BEAT = 5.0, 2.0  # seconds


@dataclass(frozen=True)
class FleetOptions:
    """uri: of the storage; address: of a cluster, None for this machine; workers: how many at most, None for as many as
    there is room for; needs: of each."""

    uri: str
    address: str | None = None
    workers: int | None = None
    needs: Needs = field(default_factory=Needs)
    driver: DriverOptions | None = None

    def driver_options(self) -> DriverOptions:
        return self.driver or DriverOptions(_LOCAL_BEAT if self.address is None else _BEAT)


def train_fleet(
    concepts: Sequence[TrainingSettings],
    library: Path,
    options: FleetOptions,
    say: Callable[[str], None] = print,
    on_summary: Callable[[Summary], None] = lambda summary: None,
) -> tuple[list[Tracked], int]:
    """Train concepts and add them to a library; return the jobs and the exit code of the worst.

    A concept that was trained before, with the same photos and settings, is not trained again. Raises UserError,
    DiskFull; KeyboardInterrupt when stopped, after checkpoints.
    """
    check_installed()
    storage.check_folder(library)
    store = open_store(options.uri)
    marker = mark(store)
    jobs = _submit_all(store, concepts)
    driver_options = options.driver_options()
    with connect(options.address, local_cpus(options.workers, options.needs.cpus)) as ray:
        worker = TrainingOptions(store.uri, marker, beat_seconds=driver_options.beat_seconds)
        pool = start_pool(ray, TrainingWorker, worker, options, len(jobs), say)

        def show(tracked: Sequence[Tracked]) -> None:
            summary = summarize(tracked, pool.slots())
            on_summary(summary)
            write_trainings(store, tracked, summary)

        driver = TrainingDriver(jobs, pool, LibraryWriter(library), driver_options, say, show)
        with sigterm_as_ctrl_c():
            code = driver.run()
    return list(driver.tracked.values()), code


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Stop with checkpoints on SIGTERM too, as a job of Ray or of a batch system gets it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)  # after Ray has set its own, which ends the workers at once
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start_pool(
    ray: Any, worker_class: type[Worker], worker: WorkerOptions, options: FleetOptions, tasks: int, say: Callable
) -> RayPool:
    """Return the workers of a command. Raises UserError if none has room on this machine."""
    pool = RayPool(ray, worker_class, worker, options.needs, options.workers, tasks, say)
    if options.address is None:
        pool.check_room()
    return pool


def mark(store: Store) -> str:
    """Return what the storage is known by, so that a worker can tell whether it sees the same one."""
    store.write_new_json(MARKER, {"id": secrets.token_hex(8)})
    marker = (store.read_json(MARKER) or {}).get("id")
    if not isinstance(marker, str):
        raise UserError(f"{printable(store.uri)} holds another {MARKER}.", "Give another --storage.")
    return marker


def _submit_all(store: Store, concepts: Sequence[TrainingSettings]) -> dict[str, Job]:
    """Put all trainings into the store; return the jobs by token. Raises UserError naming the concept."""
    jobs = {}
    for settings in concepts:
        try:
            jobs[settings.token] = submit(store, settings)
        except UserError as error:
            raise type(error)(f"{settings.token}: {error.message}", error.hint) from None
    return jobs


def page_of(uri: str) -> str:
    """Return where a fleet's page is."""
    store = open_store(uri)
    return f"{store.uri}/{PAGE}"


# --- looking after jobs -----------------------------------------------------------------------------------------------


def status(uri: str) -> list[tuple[str, JobView]]:
    """Return the token and state of every job in the storage."""
    store = _existing(uri)
    return [(str(job.token), job.view()) for job in all_jobs(store)]


def all_in(uri: str) -> list[Job]:
    """Return every job in the storage."""
    return all_jobs(_existing(uri))


def select(uri: str, names: Sequence[str]) -> list[Job]:
    """Return the jobs that are named by ID or token. Raises UserError for a name that no job has."""
    jobs = all_jobs(_existing(uri))
    selected: dict[str, Job] = {}
    for name in names:
        matching = [job for job in jobs if name == job.id or _matches(name, job)]
        if not matching:
            raise UserError(f"{printable(name)} is no job of {printable(uri)}.", "See: sdpersonal fleet status")
        selected |= {job.id: job for job in matching}
    return list(selected.values())


def _matches(name: str, job: Job) -> bool:
    try:
        return Token.parse(name).unversioned() == job.token
    except UserError:
        return False


def _existing(uri: str) -> Store:
    """Open a storage that a fleet has used. Raises UserError for any other."""
    store = open_store(uri)
    if store.read_json(MARKER) is None:
        raise UserError(f"There is no fleet in {printable(store.uri, 200)}.", "Give the --storage of `fleet train`.")
    return store
