"""Define what all workers share: their options, what they answer when they are ready, and how their tasks end."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any, Protocol

from ..version import __version__
from .store import Store, keep_trying

MARKER = "fleet.json"  # file of a store, by which a worker knows that it sees the driver's


@dataclass(frozen=True)
class WorkerOptions:
    """uri: of the store; marker: what its file `fleet.json` says; threads, gpu_fraction: of a worker; patience: seconds
    for which a store that fails is tried again."""

    uri: str
    marker: str
    threads: int = 1
    gpu_fraction: float = 1.0
    patience: float = 900.0


@dataclass(frozen=True)
class WorkerInfo:
    """Where a worker runs, and what it found there. problem: why it cannot work, in words, and hint: what to do; "" if
    it can. base: name and sha256 of the model that it keeps loaded, if it keeps one."""

    node: str
    pid: int
    version: str
    problem: str = ""
    hint: str = ""
    base: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Ended:
    """A task that ended. answer: what the worker returned; None if the worker was lost, or its code failed for the
    reason in `error`."""

    task_id: str
    answer: Any = None
    error: str = ""


class Worker(Protocol):
    """What runs on a core or card. `run` is called in one thread, `stop` in another."""

    def prepare(self) -> WorkerInfo:
        """Load what all tasks need."""

    def run(self, task_id: str, number: int) -> Any:
        """Do a task whose inputs are in the store. Its answer is small: it passes through Ray."""

    def stop(self) -> None:
        """End the running task soon, and begin no other."""


def describe_worker(store: Store, options: WorkerOptions, base: tuple[str, str] = ("", "")) -> WorkerInfo:
    """Return what a worker answers, after checking that this machine sees the fleet's storage."""
    marker = keep_trying(lambda: store.read_json(MARKER), 10) or {}
    node, problem, hint = socket.gethostname(), "", ""
    if marker.get("id") != options.marker:
        problem = f"{node} does not see the storage {options.uri}."
        hint = "Give a --storage that every machine reaches: a shared folder, or s3://..."
    return WorkerInfo(node, os.getpid(), __version__, problem, hint, base)
