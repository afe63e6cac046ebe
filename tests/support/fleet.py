"""A real cluster of Ray on this machine, whose workers and machines die while it trains; and the same trained alone."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sdpersonal.concepts.library import Library
from sdpersonal.config import TextualInversionSettings
from sdpersonal.errors import DiskFull
from sdpersonal.fleet.jobs import all_jobs
from sdpersonal.fleet.store import LocalStore

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
SUBJECTS = ("fox", "teddy-bear", "cyanotype")


def settings(number: int, steps: int = 20, **fields: object) -> TextualInversionSettings:
    """The n-th of any number of small trainings, no two alike."""
    return TextualInversionSettings(
        **{
            "photos": PHOTOS / SUBJECTS[number % 3],
            "token": f"<{('anna', 'ben')[number % 2]}/c{number}>",
            "base": "tiny",
            "steps": steps,
            "seed": number,
            "save_every": 5,
            "samples": False,
        }
        | fields
    )


def train_alone(numbers: int, folder: Path, steps: int, **fields: object) -> dict[str, str]:
    """Train the same without a fleet, on one core as a worker does; return identities by token."""
    import torch

    from sdpersonal.training import train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in range(numbers):
            places = {"library": folder / "alone", "run": folder / "runs" / str(number)}
            train(settings(number, steps, **places, **fields), log=lambda line: None, on_progress=lambda progress: None)
    finally:
        torch.set_num_threads(threads)
    return identities(folder / "alone")


def identities(library: Path) -> dict[str, str]:
    return {str(entry.token): str(entry.identity) for entry in Library(library).entries()}


@contextmanager
def cluster(machines: int, cpus: int = 1) -> Iterator[Machines]:
    """Start machines of that many cores each, with a head that has none, and end them all."""
    made = Machines(machines, cpus)
    try:
        yield made
    finally:
        made.end()


class Machines:
    """Machines of a cluster: each is a raylet of Ray with its workers."""

    def __init__(self, machines: int, cpus: int):
        from ray.cluster_utils import Cluster

        self._cpus = cpus
        head = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
        # Without hooks at exit, machines can be added in another thread.
        self._cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        # Ray names the machine's own address, to which the guard of the network lets nobody.
        self.address = f"127.0.0.1:{self._cluster.address.rpartition(':')[2]}"
        self._nodes = [self._add() for _ in range(machines)]

    def _add(self):
        return self._cluster.add_node(num_cpus=self._cpus, object_store_memory=80 << 20)

    def kill_machine(self, number: int) -> None:
        """Kill a machine, and start another."""
        self._cluster.remove_node(self._nodes[number], allow_graceful=False)
        self._nodes[number] = self._add()

    def end(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()


def training_processes() -> list[tuple[str, object]]:
    """List the workers ("actor") and the processes that train ("training") below this process."""
    import psutil

    processes = []
    for process in psutil.Process().children(recursive=True):
        try:
            line, parent = " ".join(process.cmdline()), process.parent()
            if line.startswith("ray::TrainingWorker.run"):
                processes.append(("actor", process))
            elif "multiprocessing.forkserver" in line and parent and "forkserver" in " ".join(parent.cmdline()):
                processes.append(("training", process))
        except psutil.Error:
            continue
    return processes


class Chaos(threading.Thread):
    """Kills workers and machines at random times while jobs run. killed: what was killed, and when."""

    def __init__(self, machines: Machines, uri: str, kills: int, machine_kills: int, seed: int = 0, pause=(1.0, 5.0)):
        super().__init__(daemon=True)
        self._machines, self._store, self._random = machines, LocalStore(Path(uri)), random.Random(seed)
        self._acts = ["process"] * kills + ["machine"] * machine_kills
        self._random.shuffle(self._acts)
        self._pause, self.killed, self._began = pause, list[str](), time.monotonic()
        self.is_over = False

    def run(self) -> None:
        for act in self._acts:
            while not self.is_over:
                time.sleep(self._random.uniform(*self._pause))
                if self._someone_trains() and self._kill(act):
                    break

    def _someone_trains(self) -> bool:
        return any(
            (view := job.view()).state == "running" and view.last and view.last.saved for job in all_jobs(self._store)
        )

    def _kill(self, act: str) -> bool:
        now = f"{time.monotonic() - self._began:.0f} s"
        if act == "machine":
            number = self._random.randrange(len(self._machines._nodes))
            self._machines.kill_machine(number)
            self.killed.append(f"machine {number} at {now}")
            return True
        if not (processes := training_processes()):
            return False
        kind, process = self._random.choice(processes)
        process.kill()
        self.killed.append(f"{kind} at {now}")
        return True


@contextmanager
def full_library(monkeypatch, seconds: float) -> Iterator[list[float]]:
    """For that long after the first concept the library's disk is full. Yields the times of refused additions."""
    add, refused = Library.add, list[float]()

    def sometimes(self, concept, replace=False):
        if not refused or time.monotonic() - refused[0] < seconds:
            refused.append(time.monotonic())
            raise DiskFull("not enough space in the library.")
        return add(self, concept, replace)

    with monkeypatch.context() as patch:
        patch.setattr(Library, "add", sometimes)
        yield refused


def require_ray() -> None:
    """Import ray, or skip the tests that need it.

    ray reads its token when it is first imported in a process. So all tests of a process have the token that the first
    of them sets, which closes their clusters and lies in no file.
    """
    if "ray" not in sys.modules:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex(), "RAY_USAGE_STATS_ENABLED": "0"}
    pytest.importorskip("ray", reason="ray is not installed: pip install 'sdpersonal[fleet]'")
