"""Close connections whose client neither asks nor reads: uvicorn itself would wait for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]  # mypy knows the module of this system only

CHECK_SECONDS = 10.0  # between two looks at a connection; a stalled one is closed at the second
MIN_BYTES = 10_000  # of a request body that must come in that time: 1 kB/s
MAX_CONNECTIONS = 800  # at once; when there are more, one whose client has sent least is closed
_FILES = 4096  # that the process may have open
_YOUNG_SECONDS = 1.0  # that a new connection has to send something before it is closed for another


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP protocol, with an end to what takes too long.

    Between two checks a client must complete the head of its request, send `MIN_BYTES` of the body, or read some of the
    answer. Waiting for an answer, however long, is not stalling.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._began, self._received = self.loop.time(), 0
        self._last_check: tuple[object, int, int] | None = None
        self._check: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        super().connection_made(transport)
        if len(self.connections) > max_connections():
            self._make_room()
        self._check = self.loop.call_later(CHECK_SECONDS, self._close_if_stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._check:
            self._check.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)

    def _make_room(self) -> None:
        others = [other for other in self.connections if isinstance(other, BoundedProtocol) and other is not self]
        alive = [other for other in others if not other.transport.is_closing()]  # closing takes a turn of the loop
        if len(alive) >= max_connections():
            waiting = [other for other in alive if other._waits_for_client()]
            min(waiting, key=BoundedProtocol._rank, default=self).transport.abort()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _waits_for_client(self) -> bool:
        return self._is_idle() or (self.cycle.more_body and not self.flow.read_paused)

    def _rank(self) -> tuple[bool, int]:
        return self.loop.time() - self._began < _YOUNG_SECONDS, self._received

    def _close_if_stalled(self) -> None:
        unsent = self.transport.get_write_buffer_size() if self.flow.write_paused else 0
        before, self._last_check = self._last_check, (self.cycle, self._received, unsent)
        if before is not None and before[0] is self.cycle:
            sends_too_little = self._received - before[1] < MIN_BYTES
            if self._is_idle() or (self._waits_for_client() and sends_too_little) or (unsent and unsent == before[2]):
                self.transport.abort()
                return
        self._check = self.loop.call_later(CHECK_SECONDS, self._close_if_stalled)


def raise_file_limit() -> None:
    """Let this process open enough files for `MAX_CONNECTIONS` and for a burst of new ones, if the system allows it.

    asyncio accepts up to 2,048 connections before any of them is looked at, and fails for seconds where it cannot.
    """
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def max_connections() -> int:
    """Return `MAX_CONNECTIONS`, or fewer where a process may have fewer files open."""
    if resource is None:
        return MAX_CONNECTIONS // 2
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, soft * 3 // 4)
