"""Run workers with Ray: on this machine, or on a cluster that is there. `serving/ray_serve.py` imports ray too.

A cluster of this machine's own is closed to others: its token is made anew for each command, and lies in no file; its
folder of logs and sockets is readable by this user only. No dashboard is started, and nothing is reported home.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from .. import storage
from ..errors import UserError, printable
from ..version import __version__
from .worker import Ended, Worker, WorkerInfo, WorkerOptions

INSTALL_HINT = "Install it: pip install 'sdpersonal[fleet]'"
_OBJECT_STORE_BYTES = 80 << 20  # the least that Ray accepts: only paths and small numbers pass through it
_MAX_FAILED_STARTS = 3
_CONNECT_SECONDS = 10.0
_PATIENCE = 180.0  # seconds without any worker, after which the user is told what is missing
_MAX_SOCKET_PATH = 45  # characters of the folder; Ray adds 62 for its sockets, and Linux allows 107
_GB = 1e9
Options = TypeVar("Options", bound=WorkerOptions)
_token: list[str] = []  # of the clusters that this process starts, once there is one


@dataclass(frozen=True)
class Needs:
    """What one worker needs: cores, cards (fractions share a card), GB of memory; None for what suits the machines."""

    cpus: float | None = None
    gpus: float | None = None
    memory: float = 1.5

    def worker_options(self, options: Options) -> Options:
        """Return a worker's options with the threads that it may use, and its share of a card."""
        threads, share = max(1, int(self.cpus or 1)), min(1.0, self.gpus or 1.0)
        return replace(options, threads=threads, gpu_fraction=share)


def check_installed(serve: bool = False) -> None:
    """Raise UserError, with the command to install it, if ray is missing. serve: what Ray Serve needs too."""
    if find_spec("ray") is None:
        raise UserError("The fleet needs ray, which is not installed.", INSTALL_HINT)
    if serve and any(find_spec(name) is None for name in ("grpc_reflection", "uvicorn", "starlette")):
        raise UserError("The fleet needs Ray Serve's packages, which are not installed.", INSTALL_HINT)


@contextmanager
def connect(address: str | None, cpus: float | None = None) -> Iterator[Any]:
    """Connect to the cluster at an address, or start one on this machine. Yields the module ray. Raises UserError.

    address: of a running cluster, "auto" to look for one; None: RAY_ADDRESS, else this machine alone. cpus: that a
    cluster of this machine has; default: its cores.
    """
    check_installed()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = address or os.environ.get("RAY_ADDRESS") or None
    folder = None if address else _private_folder()
    common: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    _check_reachable(address)
    with nullcontext() if address else _own_token(), _signals_as_before():
        ray = _import_ray()
        try:
            if address:
                ray.init(address=address, **common)
            else:
                own: dict[str, Any] = {"_temp_dir": str(folder)} if folder else {}
                own |= {"num_cpus": cpus} if cpus else {}
                limits = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
                ray.init(address="local", **limits, **own, **common)
        except Exception as error:  # of many kinds
            raise _connect_error(address, error) from None
        try:
            yield ray
        finally:
            ray.shutdown()
            if folder:
                with suppress(UserError):
                    storage.remove(folder)


@contextmanager
def _signals_as_before() -> Iterator[None]:
    """Put back the caller's handler of SIGTERM at the end: Ray sets its own, and leaves it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # elsewhere Ray sets none
            signal.signal(signal.SIGTERM, before)


def _check_reachable(address: str | None) -> None:
    """Raise UserError if nothing listens at HOST:PORT, which Ray would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _connect_error(address, error) from None


def _import_ray() -> Any:
    try:
        import ray
    except Exception as error:  # a version that does not fit this Python, for example
        raise UserError(f"ray cannot be loaded: {printable(str(error), 200)}", INSTALL_HINT) from None
    # What concerns the user is said by the driver. Ray prints dead machines and slow heartbeats to standard output, and
    # has no setting against it; a version without this function prints them again, and no more than that.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    internals = sys.modules.get("ray._private.worker")
    if hasattr(internals, "print_to_stdstream"):
        setattr(internals, "print_to_stdstream", lambda *args, **options: None)  # noqa: B010  # mypy knows no such name
    return ray


def _private_folder() -> Path | None:
    """Return a folder for Ray's logs and sockets; None where its path would be too long for sockets."""
    folder = storage.private_folder("sdp-ray-")
    if len(str(folder)) <= _MAX_SOCKET_PATH:
        return folder
    storage.remove(folder)
    return None


@contextmanager
def _own_token() -> Iterator[None]:
    """Set a token for a cluster of this process's own. Without one Ray would write a token into the user's home, which
    every cluster started there later would then ask for.

    ray reads the variables once, when it is imported, so the token is the same for the whole process; where ray was
    imported before, by the caller, its settings are left as they are."""
    if "ray" in sys.modules and not _token:
        yield
        return
    if not _token:
        _token.append(secrets.token_hex(32))
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    before = {name: os.environ.get(name) for name in names}
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token[0]}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _connect_error(address: str | None, error: Exception) -> UserError:
    text = getattr(error, "strerror", None) or str(error)
    lines = [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
    reason = printable(lines[0].rstrip("."), 200)
    if address is None:
        return UserError(f"Ray could not be started on this machine: {reason}.")
    return UserError(
        f"There is no Ray cluster at {printable(address)}: {reason}.",
        "Start one with `ray start --head`, or leave --address out to use this machine.",
    )


# --- workers ----------------------------------------------------------------------------------------------------------


@dataclass
class _Actor:
    """A worker's actor. pending: its preparation or its task, if there is one; task_id: of the task."""

    handle: Any
    pending: Any = None
    task_id: str = ""
    is_ready: bool = False


@dataclass
class RayPool:
    """Workers on a cluster. limit: how many at most, None for as many as the cluster has room for, which may grow;
    tasks: how many there are to do."""

    ray: Any
    worker_class: type[Worker]
    options: WorkerOptions
    needs: Needs
    limit: int | None
    tasks: int
    say: Callable[[str], None] = lambda line: None
    _workers: list[_Actor] = field(default_factory=list)
    _base: tuple[str, str] = ("", "")
    _failed_starts: int = 0
    _began: float = field(default_factory=time.monotonic)
    _has_complained: bool = False
    _is_stopping: bool = False

    def __post_init__(self) -> None:
        self.needs = fill_in(self.needs, nodes_of(self.ray))
        self.options = self.needs.worker_options(self.options)
        actor_class = self.ray.remote(self.worker_class)
        self._actor_class = actor_class.options(
            num_cpus=self.needs.cpus,
            num_gpus=self.needs.gpus,
            memory=int(self.needs.memory * _GB),
            max_concurrency=2,  # `stop` while `run` runs
            max_restarts=0,  # a lost worker is replaced here, and its task given to the next that is free
        )

    def check_room(self) -> None:
        """Raise UserError if no worker has room on any machine that is there, and none will come."""
        check_room(self.needs, nodes_of(self.ray))

    def slots(self) -> int:
        return max(1, min(self.limit or self._room(), self.tasks))

    def free(self) -> int:
        if not self._is_stopping:
            self._fill()
        return sum(worker.is_ready and worker.pending is None for worker in self._workers)

    def start(self, task_id: str, number: int) -> None:
        worker = next(worker for worker in self._workers if worker.is_ready and worker.pending is None)
        worker.task_id, worker.pending = task_id, worker.handle.run.remote(task_id, number)

    def wait(self, seconds: float) -> list[Ended]:
        pending = [worker.pending for worker in self._workers if worker.pending is not None]
        if not pending:
            time.sleep(seconds)
            return []
        done, _ = self.ray.wait(pending, num_returns=1, timeout=seconds)
        if done and len(pending) > 1:
            done, _ = self.ray.wait(pending, num_returns=len(pending), timeout=0)
        self._complain_if_none_starts()
        ended = [self._collect(worker) for worker in list(self._workers) if worker.pending in done]
        return [end for end in ended if end]

    def stop(self) -> None:
        self._is_stopping = True
        for worker in self._workers:
            worker.handle.stop.remote()

    # --- internals ----------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        for _ in range(self.slots() - len(self._workers)):
            actor = self._actor_class.remote(self.options)
            self._workers.append(_Actor(actor, actor.prepare.remote()))

    def _collect(self, worker: _Actor) -> Ended | None:
        """Take a worker's answer. One that is lost, or whose code failed, is replaced by the next `free`: what failed
        may have left its card unusable."""
        reference, worker.pending = worker.pending, None
        try:
            answer = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            is_lost = isinstance(error, self.ray.exceptions.RayActorError)
            self._workers.remove(worker)
            self.ray.kill(worker.handle)
            if not worker.is_ready:
                self._count_failed_start(error)
                return None
            return Ended(worker.task_id, None, "" if is_lost else f"Its worker failed: {_reason(error)}.")
        if isinstance(answer, WorkerInfo):
            self._check(answer)
            worker.is_ready, self._failed_starts = True, 0
            return None
        return Ended(worker.task_id, answer)

    def _check(self, info: WorkerInfo) -> None:
        if info.problem:
            raise UserError(info.problem, info.hint)
        if info.version != __version__:
            raise UserError(
                f"{info.node} has sdpersonal {printable(info.version, 40)}, this machine {__version__}.",
                "Install the same version everywhere.",
            )
        self._base = self._base if self._base[0] else info.base
        if info.base != self._base:
            names = (
                f"{printable(info.base[0])} ({info.base[1][:8]})",
                f"{printable(self._base[0])} ({self._base[1][:8]})",
            )
            raise UserError(
                f"{info.node} has loaded the model {names[0]}, another machine {names[1]}.",
                "Name one with --base, and give every machine the same files.",
            )

    def _count_failed_start(self, error: Exception) -> None:
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise UserError(
                f"Workers do not start: {_reason(error)}.", f"Every machine needs sdpersonal {__version__} with ray."
            )

    def _complain_if_none_starts(self) -> None:
        if any(worker.is_ready for worker in self._workers):
            self._has_complained, self._began = False, time.monotonic()
        elif time.monotonic() - self._began > _PATIENCE and not self._has_complained:
            self._has_complained = True
            self.say(f"No worker has started yet: {describe_needs(self.needs, nodes_of(self.ray))}.")

    def _room(self) -> int:
        """Return how many workers the machines have room for."""
        return room_for(self.needs, nodes_of(self.ray))


def nodes_of(ray: Any) -> list[dict[str, float]]:
    """Return the resources of each machine of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room_for(needs: Needs, nodes: list[dict[str, float]]) -> int:
    """Return how many workers the machines have room for."""
    return sum(_fits(node, needs) for node in nodes)


def check_room(needs: Needs, nodes: list[dict[str, float]], flags: str = "--...-per-worker") -> None:
    """Raise UserError if no worker has room on any of the machines."""
    if room_for(needs, nodes) == 0:
        raise UserError(f"No worker has room here: {describe_needs(needs, nodes)}.", f"Give smaller {flags}.")


def describe_needs(needs: Needs, nodes: list[dict[str, float]]) -> str:
    """Describe what one worker needs, and what there is, in words."""
    have = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    return (
        f"one needs {needs.cpus:g} cores, {needs.gpus:g} cards and {needs.memory:g} GB of memory, "
        f"all machines together have {have['CPU']:g} cores and {have['GPU']:g} cards"
    )


def fill_in(needs: Needs, nodes: list[dict[str, float]]) -> Needs:
    """Choose what was left open: a card for each worker where there are cards, with up to four cores; else a core."""
    cards = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    gpus = needs.gpus if needs.gpus is not None else (1.0 if cards else 0.0)
    cores = max((node.get("CPU", 1.0) for node in nodes if node.get("GPU", 0.0) == cards), default=1.0)
    cpus = needs.cpus if needs.cpus is not None else (max(1.0, min(4.0, cores * gpus // cards)) if gpus else 1.0)
    return Needs(cpus, gpus, needs.memory)


def _fits(node: dict[str, float], needs: Needs) -> int:
    pairs = [
        (node.get("CPU", 0.0), needs.cpus),
        (node.get("GPU", 0.0), needs.gpus),
        (node.get("memory", 0.0), needs.memory * _GB),
    ]
    return min(int(have / need + 1e-9) for have, need in pairs if need)


def _reason(error: Exception) -> str:
    """Return the last line of an error, which in Ray's carries the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[-1].rstrip("."), 200) if lines else type(error).__name__


def local_cpus(workers: int | None, cpus_per_worker: float | None) -> float | None:
    """Return the cores that a cluster of this machine must claim, for more workers than it has cores."""
    needed = (workers or 0) * (cpus_per_worker or 1.0)
    return needed if needed > (os.cpu_count() or 1) else None
