"""How a fleet grows to a thousand cards: `PYTHONPATH=.:tests python benchmarks/fleet_growth.py`.

The driver, its jobs, the store and the library are the real ones, in a folder; workers are simulated, and so is time.
The clock counts

- the processor time that the driver really takes for each round;
- for each operation on the store, the latency of the kind of storage, an assumption that the table names;
- and skips to the next end of a training, or of a beat, while the driver waits.

What the workers write costs the driver nothing. Use is the share of their time in which workers train; the last columns
say what the driver's time goes to. Ray itself is not part of it.
"""

from __future__ import annotations

import heapq
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import tyro

from sdpersonal.concepts.concept_file import concept_to_chunks
from sdpersonal.config import TextualInversionSettings
from sdpersonal.fleet import adder, driver_loop, training_driver
from sdpersonal.fleet.driver_loop import DriverOptions
from sdpersonal.fleet.jobs import Job, Outcome, Result, submit
from sdpersonal.fleet.library_writer import LibraryWriter
from sdpersonal.fleet.progress import summarize, write_trainings
from sdpersonal.fleet.store import LocalStore
from sdpersonal.fleet.training_driver import Tracked, TrainingDriver
from sdpersonal.fleet.worker import Ended

_PARTS = ("_start_tasks", "_end_tasks", "_add_finished", "_look", "_show")


@dataclass(frozen=True)
class Options:
    """workers: how many, one row each; jobs_per_worker: trainings for each; seconds: of a training; latency:
    milliseconds of an operation on the store, one table each; beat: seconds between two looks; threads: of the driver,
    which wait for the store at the same time; out: a JSON file."""

    workers: tuple[int, ...] = (1, 4, 16, 64, 256, 1000)
    jobs_per_worker: int = 4
    seconds: float = 60.0
    latency: tuple[float, ...] = (0.0, 1.0, 30.0)
    beat: float = 5.0
    threads: int = 32
    out: Path | None = None


@dataclass
class Clock:
    """Seconds of the simulation. spent: processor time and latency by part of the driver."""

    skipped: float = 0.0
    charged: float = 0.0
    hidden: float = 0.0  # processor time of the simulation itself
    spent: Counter[str] = field(default_factory=Counter)
    part: str = ""

    def now(self) -> float:
        return time.process_time() - self.hidden + self.charged + self.skipped

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Count nothing that happens meanwhile."""
        start, charged = time.process_time(), self.charged
        yield
        self.hidden += time.process_time() - start
        self.charged = charged

    @contextmanager
    def counted(self, part: str) -> Iterator[None]:
        start = self.now()
        yield
        self.spent[part] += self.now() - start


class SlowStore(LocalStore):
    """A folder whose operations take the latency of another kind of storage, on the clock of the simulation."""

    def __init__(self, folder: Path, clock: Clock, latency: float):
        super().__init__(folder)
        self._clock, self._latency = clock, latency

    def __getattribute__(self, name: str) -> Any:
        if name in ("read", "write", "write_new", "names", "files", "remove"):
            clock = object.__getattribute__(self, "_clock")
            clock.charged += object.__getattribute__(self, "_latency")
        return object.__getattribute__(self, name)


class SimulatedThreads:
    """Threads that wait for the store at the same time, but compute one after the other."""

    def __init__(self, clock: Clock, count: int):
        self._clock, self._count = clock, count

    def map(self, action: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        clock, before = self._clock, self._clock.charged
        results, waits = [], [0.0]
        for item in items:
            start = clock.charged
            results.append(action(item))
            waits.append(clock.charged - start)
        clock.charged = before + max(max(waits), sum(waits) / self._count)
        return results

    def shutdown(self, **options: Any) -> None:
        pass


class SimulatedPool:
    """Workers that train for a while, and write what workers write at the end."""

    def __init__(self, clock: Clock, options: Options, jobs: dict[str, Job], concepts: dict[str, tuple[str, bytes]]):
        self._clock, self._options, self._jobs, self._concepts = clock, options, jobs, concepts
        self._slots = 0
        self._running: list[tuple[float, str, int]] = []
        self.trained = 0.0

    def with_slots(self, slots: int) -> SimulatedPool:
        self._slots = slots
        return self

    def slots(self) -> int:
        return self._slots

    def free(self) -> int:
        return self._slots - len(self._running)

    def start(self, job_id: str, number: int) -> None:
        # Trainings do not all take the same time: 0.8 to 1.2 of the mean, in a fixed order.
        share = 0.8 + 0.4 * ((len(self._running) * 7919 + number) % 101) / 100
        heapq.heappush(self._running, (self._clock.now() + share * self._options.seconds, job_id, number))
        self.trained += share * self._options.seconds

    def wait(self, seconds: float) -> list[Ended]:
        now = self._clock.now()
        until = min(now + seconds, max(now, self._running[0][0])) if self._running else now + seconds
        self._clock.skipped += max(0.0, until - now)
        ended = []
        with self._clock.stopped():
            while self._running and self._running[0][0] <= until:
                _, job_id, number = heapq.heappop(self._running)
                ended.append(Ended(job_id, self._finish(self._jobs[job_id], number)))
        return ended

    def _finish(self, job: Job, number: int) -> Any:
        identity, data = self._concepts[job.id]
        job.write_trained(Result("", identity, 100, self._options.seconds), data)
        attempt = replace(job.attempt(number), outcome=Outcome.TRAINED, step=100, steps=100)
        job.update(attempt)
        return attempt

    def stop(self) -> None:
        pass


def simulate(options: Options, workers: int, latency: float) -> dict[str, float]:
    """Train `jobs_per_worker * workers` jobs on that many workers; return the figures of a row."""
    clock = Clock()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        with clock.stopped():
            store = SlowStore(Path(name) / "fleet", clock, latency / 1000)
            jobs, concepts = _submit(store, Path(name), workers * options.jobs_per_worker)
        pool = SimulatedPool(clock, options, {job.id: job for job in jobs.values()}, concepts).with_slots(workers)

        def show(tracked: Sequence[Tracked]) -> None:
            write_trainings(store, tracked, summarize(tracked, workers))

        training = TrainingDriver(
            jobs, pool, LibraryWriter(Path(name) / "library"), DriverOptions(options.beat), on_change=show
        )
        training._threads = SimulatedThreads(clock, options.threads)  # type: ignore[assignment]
        for part in _PARTS:
            setattr(training, part, _counting(clock, part, getattr(training, part)))
        simulated_time = SimpleNamespace(monotonic=clock.now)
        start = clock.now()
        with ExitStack() as patches:
            for module in (adder, driver_loop, training_driver):
                patches.enter_context(patch.object(module, "time", simulated_time))
            if training.run():
                sys.exit("a training failed")
        makespan = clock.now() - start
    row = {"workers": workers, "latency": latency, "jobs": len(jobs), "makespan": round(makespan, 1)}
    row["use"] = round(pool.trained / (workers * makespan), 3)
    row["busy"] = round(sum(clock.spent.values()) / makespan, 3)
    return row | {part: round(clock.spent[part] / makespan, 3) for part in _PARTS}


def _counting(clock: Clock, part: str, action: Any) -> Any:
    def counted(*args: Any) -> Any:
        with clock.counted(part):
            return action(*args)

    return counted


def _submit(store: LocalStore, folder: Path, count: int) -> tuple[dict[str, Job], dict[str, tuple[str, bytes]]]:
    """Submit trainings; return them by token, and the identity and file of the concept that each will give, by ID."""
    from support import samples

    photos = folder / "photos"
    photos.mkdir()
    (photos / "1.jpg").write_bytes(b"x")
    jobs, concepts = {}, {}
    for number in range(count):
        token = f"<user{number % 50}/c{number}>"
        jobs[token] = job = submit(store, TextualInversionSettings(photos=photos, token=token))
        concept = samples.embedding(token, number)
        concepts[job.id] = concept.identity, b"".join(concept_to_chunks(concept))
    return jobs, concepts


def main(options: Options) -> None:
    rows = []
    print("latency  workers  jobs  makespan   use  driver busy:", "  ".join(part.strip("_") for part in _PARTS))
    for latency in options.latency:
        for workers in options.workers:
            rows.append(row := simulate(options, workers, latency))
            parts = "  ".join(f"{row[part]:{len(part)}.1%}" for part in _PARTS)
            print(
                f"{latency:4.0f} ms {workers:8} {row['jobs']:5.0f} {row['makespan']:7.0f} s {row['use']:5.0%} "
                f"{row['busy']:10.0%}: {parts}",
                flush=True,
            )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
