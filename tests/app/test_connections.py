"""Connections of clients that stall are closed; others are not, however long the answer takes."""

import asyncio
from types import SimpleNamespace

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from sdpersonal.app.server import connections
from sdpersonal.app.server.connections import MIN_BYTES, BoundedProtocol

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
def test_only_stalled_connections_are_closed(connect, case):
    async def go():
        sent = (STALLS | WORKS)[case]
        return await closed_after(*connect(), *sent)

    assert asyncio.run(go()) == (case in STALLS)


@pytest.mark.parametrize("reads", [True, False])
def test_a_connection_whose_client_reads_nothing_is_closed(connect, reads):
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


def test_new_connections_replace_those_that_sent_least(connect, monkeypatch):
    monkeypatch.setattr(connections, "max_connections", lambda: 10)
    monkeypatch.setattr(connections, "_YOUNG_SECONDS", 0)

    async def go():
        opened = [connect() for _ in range(10)]
        for number, (protocol, _) in enumerate(opened):  # three wait for an answer, one uploads, the rest stalls
            sent = WORKS["waits for an answer"][0] if number < 3 else POST if number > 6 else b"GET / H"
            protocol.data_received(sent)
        opened[9][0].data_received(b"x" * 5000)
        await asyncio.sleep(0)
        for _ in range(6):  # all are accepted before one that is closed is gone
            opened.append(connect())
            opened[-1][0].data_received(b"x" * 1000)
        for protocol in [protocol for protocol, transport in opened if transport.aborted]:
            protocol.connection_lost(None)
        opened = [pair for pair in opened if not pair[1].aborted]
        return opened[0][0].connections, opened

    open_ones, opened = asyncio.run(go())
    assert len(open_ones) == 10 and [protocol._received for protocol, _ in opened[:3]] == [27] * 3
    assert opened[3][0]._received == len(POST) + 5000 and len(opened) == 10


def test_a_new_connection_is_closed_when_all_others_are_active(connect, monkeypatch):
    monkeypatch.setattr(connections, "max_connections", lambda: 3)

    async def go():
        opened = [connect() for _ in range(3)]
        for protocol, _ in opened:
            protocol.data_received(WORKS["waits for an answer"][0])
        await asyncio.sleep(0)
        opened.append(connect())
        aborted = [transport.aborted for _, transport in opened]
        for protocol, _ in opened:
            protocol.connection_lost(None)
        return aborted

    assert asyncio.run(go()) == [False] * 3 + [True]


def test_the_open_file_limit_is_raised_and_bounds_the_connections(monkeypatch):
    limits = [(256, 1000)]
    fake = SimpleNamespace(RLIMIT_NOFILE=7, RLIM_INFINITY=-1)
    fake.getrlimit, fake.setrlimit = lambda _: limits[-1], lambda _, limit: limits.append(limit)
    monkeypatch.setattr(connections, "resource", fake)
    for before, after, count in [
        ((256, 1000), (1000, 1000), 750),
        ((1024, -1), (4096, -1), 800),
        ((9999, 9999), (9999, 9999), 800),
        ((-1, -1), (-1, -1), 800),
    ]:
        limits.append(before)
        connections.raise_file_limit()
        assert limits[-1] == after and connections.max_connections() == count
