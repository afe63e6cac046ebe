"""Let several processes fail as one: when one fails or dies, all end soon and report the cause once.

A collective waits for a dead peer: half an hour with gloo, ten minutes with NCCL. So beside the process group each
process has a TCP connection to rank 0. The kernel closes it when a process ends, however it ends; there is no timeout,
so a slow process is never taken for a dead one. (A machine that vanishes from the network closes nothing; TCP's
keep-alive probes notice it within 20 seconds.)
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

from ..errors import DiskFull, Diverged, Interrupted, UserError
from .distributed import Accelerator, broadcast_integers

GRACE_SECONDS = 10.0  # until a process is ended after another failed; a thread stuck in a collective cannot end itself
_CONNECT_SECONDS = 30.0
_FAILURE_NEWS_SECONDS = 3.0  # to wait for the news of a peer's death after a collective failed
_ERROR_TYPES = {error.exit_code: error for error in (DiskFull, Diverged, Interrupted)}
_DONE_MESSAGE = "bye"


@dataclass(frozen=True)
class _Failure:
    """The reason why a process ended; `trace` is a traceback, if the error was not the user's."""

    rank: int
    message: str
    hint: str = ""
    code: int = 1
    trace: str = ""

    @classmethod
    def from_error(cls, rank: int, error: BaseException) -> _Failure:
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
    """Run the block in all processes. If one fails, rank 0 raises the cause (rank 1 if rank 0 died), the others
    SystemExit with the same code; a process that hangs in a collective is ended."""
    if accelerator.num_processes == 1:
        yield
        return
    peers = _PeerConnections(accelerator)
    try:
        yield
    except BaseException as error:
        failure = peers.root_cause(error)
        if not peers.should_report(failure):
            raise SystemExit(failure.code) from None
        if failure.rank == peers.rank:
            raise
        raise failure.error() from None
    finally:
        peers.close()


class _PeerConnections:
    """The connections of this process: rank 0 has one to every other and forwards messages; the others one to it."""

    def __init__(self, accelerator: Accelerator):
        self.rank, self._size = accelerator.process_index, accelerator.num_processes
        self._failure: _Failure | None = None
        self._known, self._gone, self._mutex = threading.Event(), threading.Event(), threading.Lock()
        self._peers = self._accept_peers(accelerator) if self.rank == 0 else {0: self._connect_to_main(accelerator)}
        for rank, connection in self._peers.items():
            threading.Thread(target=self._listen, args=(rank, connection), daemon=True).start()

    def root_cause(self, error: BaseException) -> _Failure:
        """Return the failure behind this error: the error itself, or the end of a peer that caused it."""
        is_cause = isinstance(error, UserError | KeyboardInterrupt | SystemExit)
        if not is_cause:
            self._known.wait(_FAILURE_NEWS_SECONDS)
        with self._mutex:
            if is_cause or self._failure is None:
                self._failure = _Failure.from_error(self.rank, error)
                self._known.set()
                self._send(asdict(self._failure))
        return self._failure

    def should_report(self, failure: _Failure) -> bool:
        return self.rank == (1 if failure.rank == 0 and failure.message == _DIED_MESSAGE else 0)

    def close(self) -> None:
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
            secret = secrets.token_bytes(16)  # else anybody who finds the port could end the run
            broadcast_integers(accelerator, [server.getsockname()[1], *secret])
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
        port, *secret = broadcast_integers(accelerator, [0] * 17)
        connection = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=_CONNECT_SECONDS)
        connection.sendall(bytes(secret) + self.rank.to_bytes(2))
        return _keep_alive(connection)


_DIED_MESSAGE = "It ended without a word (killed, or out of memory)."


def _open_server() -> socket.socket:
    with suppress(OSError):  # MASTER_ADDR may name a service rather than this machine
        return socket.create_server((os.environ["MASTER_ADDR"], 0))
    return socket.create_server(("", 0))


def _keep_alive(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection
