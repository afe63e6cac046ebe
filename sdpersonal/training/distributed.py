"""Several processes as one run: they start equal, and when one fails or dies all end, soon, with the cause said once.

Left to itself a collective waits for a dead partner: half an hour with gloo, ten minutes with NCCL. So beside the
process group each process holds a plain connection to rank 0. The kernel closes it when a process ends, however it
ends; no time is measured, so a slow step is never taken for a dead one. (A machine that vanishes from the network
closes nothing; TCP's own probes notice it within 20 seconds.)
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather

from .. import storage
from ..errors import DiskFull, Diverged, Interrupted, UserError
from ..photos.loading import PhotoSet

GRACE_SECONDS = 10.0  # seconds to end by oneself once another has failed; a thread stuck in a collective cannot
_CONNECT_SECONDS = 30.0
_FAILURE_NEWS_SECONDS = 3.0  # how long the word of a partner's death may take when a collective has failed already
_ERROR_TYPES = {error.exit_code: error for error in (DiskFull, Diverged, Interrupted)}
_DONE_MESSAGE = "bye"


def init_distributed() -> Accelerator:
    """This process among those that the launcher started, or alone. Raises UserError if the meeting port is taken.

    The masters are fp32 whatever the base is, so there is no mixed precision here.
    """
    try:
        # Told of the CPU, or processes without a card would not find each other.
        return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    except RuntimeError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = os.environ.get("MASTER_PORT", "")
        raise UserError(
            f"Port {port} is in use, perhaps by another run.",
            "Start with: accelerate launch --main_process_port 0",
        ) from None


def check_same_start(accelerator: Accelerator, photos: PhotoSet, identity: dict[str, object], start: int) -> None:
    """Raises UserError, in every process, unless all have the same photos, settings and step to go on from."""
    if accelerator.num_processes == 1:
        return
    settings = storage.sha256(json.dumps(identity, sort_keys=True).encode())
    mine = [len(photos.photos), int(photos.identity[:12], 16), int(settings[:12], 16), start]
    rows = gather(torch.tensor([mine], device=accelerator.device)).tolist()
    for rank, row in enumerate(rows):
        if row[0] != rows[0][0]:
            raise UserError(f"Rank {rank} sees {row[0]} photos, rank 0 sees {rows[0][0]}.", _SAME_FOLDERS)
        if row[1] != rows[0][1]:
            raise UserError(f"Rank {rank} sees other photos than rank 0.", _SAME_FOLDERS)
        if row[2] != rows[0][2]:
            raise UserError(f"Rank {rank} was started with other settings than rank 0.", "Give all the same.")
        if row[3] != rows[0][3]:
            raise UserError(f"Rank {rank} would go on from step {row[3]}, rank 0 from {rows[0][3]}.", _SAME_FOLDERS)


def broadcast_decision(accelerator: Accelerator, decision: bool) -> bool:
    """What the first process decided, in every process."""
    if accelerator.num_processes == 1:
        return decision
    return bool(broadcast(_int_tensor(accelerator, [decision])).item())


_SAME_FOLDERS = "Every process needs the same folders; between machines, on a shared disk."


@dataclass(frozen=True)
class _Failure:
    """Why one process ended; `trace` is a traceback, where it was no mistake of the user's."""

    rank: int
    message: str
    hint: str = ""
    code: int = 1
    trace: str = ""

    @classmethod
    def of(cls, rank: int, error: BaseException) -> _Failure:
        if isinstance(error, UserError):
            return cls(rank, error.message, error.hint, error.exit_code)
        if isinstance(error, KeyboardInterrupt):
            return cls(rank, "Stopped.", code=Interrupted.exit_code)
        if isinstance(error, SystemExit):
            return cls(rank, f"It called exit({error.code!r}).")
        return cls(rank, repr(error), trace="".join(traceback.format_exception(error)))

    def error(self) -> Exception:
        if self.trace:
            return RuntimeError(f"Rank {self.rank} failed:\n{self.trace}")
        error = _ERROR_TYPES.get(self.code, UserError)(f"Rank {self.rank}: {self.message}", self.hint)
        error.exit_code = self.code
        return error


@contextmanager
def fail_together(accelerator: Accelerator) -> Iterator[None]:
    """Work of all processes. Where one fails, rank 0 raises the cause (rank 1 if it was rank 0 that died), and the
    others SystemExit with the same code; a process that hangs in a collective is ended."""
    if accelerator.num_processes == 1:
        yield
        return
    crew = _PeerConnections(accelerator)
    try:
        yield
    except BaseException as error:
        failure = crew.root_cause(error)
        if not crew.should_report(failure):
            raise SystemExit(failure.code) from None
        if failure.rank == crew.rank:
            raise
        raise failure.error() from None
    finally:
        crew.leave()


class _PeerConnections:
    """This process's connections: rank 0 has one to everybody, the others one to rank 0, which passes news on."""

    def __init__(self, accelerator: Accelerator):
        self.rank, self._size = accelerator.process_index, accelerator.num_processes
        self._failure: _Failure | None = None
        self._known, self._gone, self._mutex = threading.Event(), threading.Event(), threading.Lock()
        self._peers = self._accept_peers(accelerator) if self.rank == 0 else {0: self._connect_to_main(accelerator)}
        for rank, connection in self._peers.items():
            threading.Thread(target=self._listen, args=(rank, connection), daemon=True).start()

    def root_cause(self, error: BaseException) -> _Failure:
        """What ended the work here: this error, or a partner's end of which it is only the echo."""
        own = isinstance(error, UserError | KeyboardInterrupt | SystemExit)
        if not own:
            self._known.wait(_FAILURE_NEWS_SECONDS)
        with self._mutex:
            if own or self._failure is None:
                self._failure = _Failure.of(self.rank, error)
                self._known.set()
                self._send(asdict(self._failure))
        return self._failure

    def should_report(self, failure: _Failure) -> bool:
        return self.rank == (1 if failure.rank == 0 and failure.message == _DIED_MESSAGE else 0)

    def leave(self) -> None:
        self._gone.set()
        self._send(_DONE_MESSAGE)
        for connection in self._peers.values():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)  # while its listener reads, close() alone would close nothing
            connection.close()

    def _listen(self, rank: int, connection: socket.socket) -> None:
        failure = _Failure(rank, _DIED_MESSAGE, "Checkpoints are whole: add --resume to go on from the newest.")
        with suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if message == _DONE_MESSAGE:
                    return
                failure = _Failure(**message)
                break
        with self._mutex:
            if self._known.is_set() or self._gone.is_set():
                return
            self._failure = failure
            self._known.set()
        self._send(asdict(failure))
        if not self._gone.wait(GRACE_SECONDS):
            if self.should_report(failure):
                sys.stderr.write(f"error: {failure.error()}\n")
                sys.stderr.flush()
            os._exit(failure.code)

    def _send(self, message: object) -> None:
        for connection in self._peers.values():
            with suppress(OSError):
                connection.sendall(json.dumps(message).encode() + b"\n")

    def _accept_peers(self, accelerator: Accelerator) -> dict[int, socket.socket]:
        with _open_server() as server:
            secret = secrets.token_bytes(16)  # or anybody who finds the port could end the run
            broadcast(_int_tensor(accelerator, [server.getsockname()[1], *secret]))
            server.settimeout(_CONNECT_SECONDS)
            peers: dict[int, socket.socket] = {}
            while len(peers) < self._size - 1:
                connection, _ = server.accept()
                connection.settimeout(_CONNECT_SECONDS)
                hello = connection.recv(18, socket.MSG_WAITALL)
                if hello[:16] == secret:
                    peers[int.from_bytes(hello[16:])] = _keep_alive(connection)
                else:
                    connection.close()
            return peers

    def _connect_to_main(self, accelerator: Accelerator) -> socket.socket:
        port, *secret = broadcast(_int_tensor(accelerator, [0] * 17)).tolist()
        connection = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=_CONNECT_SECONDS)
        connection.sendall(bytes(secret) + self.rank.to_bytes(2))
        return _keep_alive(connection)


_DIED_MESSAGE = "It ended without a word (killed, or out of memory)."


def _int_tensor(accelerator: Accelerator, values: list[int]) -> torch.Tensor:
    return torch.tensor(values, device=accelerator.device)


def _open_server() -> socket.socket:
    with suppress(OSError):  # the name of a service rather than of this machine
        return socket.create_server((os.environ["MASTER_ADDR"], 0))
    return socket.create_server(("", 0))


def _keep_alive(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection
