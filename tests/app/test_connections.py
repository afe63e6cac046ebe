"""Connections of clients that stall are closed; others are not, however long the answer takes."""

import asyncio

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from sdpersonal.app.ui import connections
from sdpersonal.app.ui.connections import MIN_BYTES, BoundedProtocol

CHECK = 0.03  # seconds
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"


class Transport(asyncio.Transport):
    """A connection without a network. unsent: bytes that the client has not read."""

    def __init__(self):
        super().__init__({"peername": ("10.0.0.9", 1), "sockname": ("10.0.0.1", 2)})
        self.aborted, self.unsent, self.written = False, 0, b""

    def write(self, data):
        self.written += data

    def get_write_buffer_size(self):
        return self.unsent

    def is_closing(self):
        return self.aborted

    def abort(self):
        self.aborted = True

    close = abort
    pause_reading = resume_reading = lambda self: None


async def program(scope, receive, send):
    """Takes the body, and answers when the client goes."""
    while (message := await receive())["type"] == "http.request" and message["more_body"]:
        pass
    if scope["path"] == "/short":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})
    else:
        await receive()


@pytest.fixture
def connect(monkeypatch):
    """Function that returns a new connection, all to the same server."""
    monkeypatch.setattr(connections, "CHECK_SECONDS", CHECK)
    config, state = Config(program, log_level="critical"), ServerState()
    config.load()

    def connected():
        transport = Transport()
        protocol = BoundedProtocol(config=config, server_state=state, app_state={})
        protocol.connection_made(transport)
        return protocol, transport

    return connected


async def closed_after(protocol, transport, *sent, count=8):
    """Send something at each of some checks; return whether the connection was closed."""
    for turn in range(count):
        if not transport.aborted and turn < len(sent):
            protocol.data_received(sent[turn])
        await asyncio.sleep(CHECK)
    aborted = transport.aborted
    protocol.connection_lost(None)
    return aborted


STALLS = {
    "silent": [],
    "half a head": [b"GET / HTT"],
    "a head in drops": [b"GET / HTTP/1.1\r\n", *[b"X-A: b\r\n"] * 7],
    "no body": [POST],
    "a body in drops": [POST, *[b"x"] * 7],
    "a body after the answer": [POST.replace(b"/", b"/short", 1).replace(b"1000000", b"1"), b"x", *[b"\r\n"] * 6],
}
WORKS = {
    "waits for an answer": [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"],
    "sends a body": [POST, *[b"x" * MIN_BYTES] * 7],
}


@pytest.mark.parametrize("case", [*STALLS, *WORKS])
def test_a_client_that_stalls_is_closed(connect, case):
    async def go():
        sent = (STALLS | WORKS)[case]
        return await closed_after(*connect(), *sent)

    assert asyncio.run(go()) == (case in STALLS)


@pytest.mark.parametrize("reads", [True, False])
def test_a_client_that_reads_nothing_is_closed(connect, reads):
    async def go():
        protocol, transport = connect()
        protocol.data_received(WORKS["waits for an answer"][0])
        protocol.pause_writing()
        transport.unsent = 1 << 20
        for _ in range(6):
            transport.unsent -= 1000 * reads
            await asyncio.sleep(CHECK)
        aborted = transport.aborted
        protocol.connection_lost(None)
        return aborted

    assert asyncio.run(go()) != reads


def test_new_connections_take_the_place_of_idle_ones(connect, monkeypatch):
    monkeypatch.setattr(connections, "max_connections", lambda: 10)

    async def go():
        busy = [connect() for _ in range(5)]
        for protocol, _ in busy:
            protocol.data_received(WORKS["waits for an answer"][0])
        idle = []
        for _ in range(20):
            idle.append(connect())
            for protocol, transport in [pair for pair in idle if pair[1].aborted]:
                protocol.connection_lost(None)
                idle.remove((protocol, transport))
        await asyncio.sleep(0)
        assert not any(transport.aborted for _, transport in busy) and len(idle) == 5
        for protocol, _ in [*busy, *idle]:
            protocol.connection_lost(None)

    asyncio.run(go())
