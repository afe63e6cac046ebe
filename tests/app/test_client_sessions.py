"""A session of the API is of the user who began it, and nobody has any number of them: around a program that answers
everything."""

import json
from collections import OrderedDict
from types import SimpleNamespace

import anyio
import anyio.from_thread
import pytest

from sdpersonal.app.routes.requests import USER_KEY
from sdpersonal.app.server import client_sessions
from sdpersonal.app.server.client_sessions import (
    MAX_EVENTS,
    MAX_HEARTBEATS,
    MAX_PAGES,
    MAX_SESSIONS,
    MAX_STREAMS,
    ClientSessionMiddleware,
)


class States:
    """Gradio's StateHolder: the states of sessions, the longest unused first."""

    def __init__(self):
        self.session_data, self.time_last_used, self.deleted = OrderedDict(), {}, []

    def delete_state(self, session):
        self.deleted.append(session)


def greet(name: str, count: int = 1) -> str:
    """An endpoint."""


class Gradio:
    """A program with states and events. A stream ends when its client goes."""

    def __init__(self):
        self.state_holder, self.events = States(), {}
        self.bodies, self.messages, self.ids, self.ended = [], {}, {}, []

    def get_blocks(self):
        queue = SimpleNamespace(event_ids_to_events=self.events, clean_events=self.clean_events)
        queue.pending_messages_per_session, queue.pending_event_ids_session = self.messages, self.ids
        return SimpleNamespace(_queue=queue, fns={0: SimpleNamespace(api_name="greet", fn=greet, inputs=[1, 2])})

    async def clean_events(self, session_hash):
        self.ended.append(session_hash)

    async def __call__(self, scope, receive, send):
        body = await receive() if scope["method"] == "POST" else {}
        self.bodies.append(body.get("body"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["method"] == "GET":
            assert (await receive())["type"] == "http.disconnect"
        content = {"event_id": f"event{len(self.bodies)}"} if scope["method"] == "POST" else "in"
        await send({"type": "http.response.body", "body": encoded(content)})


def encoded(body):
    return body if isinstance(body, bytes) else json.dumps(body).encode()


class Clients:
    """The program behind the middleware, and how to ask."""

    def __init__(self):
        self.gradio = Gradio()
        self.middleware = ClientSessionMiddleware(self.gradio)

    async def begin(self, user, path, query="", body=None, gone=None, texts=None):
        """Ask, and return the answer's status. gone: event that the client goes away at; texts: what is answered."""
        statuses, bodies = [], [] if body is None else [encoded(body)]

        async def receive():
            if bodies:
                return {"type": "http.request", "body": bodies.pop()}
            if gone:
                await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            statuses.append(message.get("status"))
            if texts is not None:
                texts.append(message.get("body", b"").decode())

        path = path if path.startswith("/") else f"/gradio_api/{path}"
        scope = {"type": "http", "method": "GET" if body is None else "POST", "path": path}
        scope |= {"query_string": query.encode(), "headers": [], "app": self.gradio}
        await self.middleware(scope | ({} if user is None else {USER_KEY: user}), receive, send)
        return statuses[0] if statuses else None

    def ask(self, *request, **more):
        return anyio.run(lambda: self.begin(*request, **more))

    def join(self, user, session):
        status = self.ask(user, "queue/join", body={"session_hash": session, "fn_index": 0, "data": [1, 2]})
        self.gradio.state_holder.session_data[session] = "state"
        return status


@pytest.fixture
def clients():
    return Clients()


JOIN = {"session_hash": "bobs", "fn_index": 0, "data": [1, 2]}
USES = {
    "join": ("queue/join", {"body": JOIN | {"session_hash": "anns"}}),
    "join, twice": (
        "queue/join",
        {"body": b'{"data": [1, 2], "fn_index": 0, "session_hash": "evil", "session_hash": "anns"}'},
    ),
    "join, UTF-16": ("queue/join", {"body": json.dumps(JOIN | {"session_hash": "anns"}).encode("utf-16")}),
    "join, escaped": ("queue/join", {"body": b'{"session\\u005fhash": "ann\\u0073", "fn_index": 0, "data": [1, 2]}'}),
    "data": ("queue/data", {"query": "session_hash=anns"}),
    "data, twice": ("queue/data", {"query": "session_hash=evil&session_hash=anns"}),
    "data, escaped": ("queue/data", {"query": "session%5Fhash=%61nns"}),
    "heartbeat": ("heartbeat/anns", {}),
    "cancel": ("cancel", {"body": {"session_hash": "anns", "fn_index": 1, "event_id": "x"}}),
    "cancel, by the event": ("cancel", {"body": {"session_hash": "evil", "fn_index": 1, "event_id": "anns-event"}}),
}


@pytest.mark.parametrize("use", USES)
def test_a_session_is_available_only_to_the_user_who_started_it(clients, use):
    path, request = USES[use]
    clients.gradio.events["anns-event"] = SimpleNamespace(session_hash="anns", username="ann")
    assert clients.join("ann", "anns") == 200
    seen = len(clients.gradio.bodies)
    assert clients.ask("bob", path, **request) == 403 and len(clients.gradio.bodies) == seen
    if "evil" not in str(request):
        assert clients.ask("ann", path, **request) == 200
        sent = encoded(request["body"]) if "body" in request else None
        assert clients.gradio.bodies[-1] == sent  # Gradio reads what was sent


@pytest.mark.parametrize("version", ["", "v2/"])
def test_the_result_of_an_api_call_is_available_only_to_its_user(clients, version):
    """Calls name no session: the event's own id is one."""
    body = {"name": "x"} if version else {"data": ["x", 1]}
    assert clients.ask("ann", f"call/{version}greet", body=body) == 200
    event = f"event{len(clients.gradio.bodies)}"
    for name in ("greet", "v2/greet"):
        assert clients.ask("bob", f"call/{name}/{event}") == 403
        assert clients.ask("bob", f"call/{name}/unknown") == 404 == clients.ask("ann", f"call/{name}/unknown")
        assert clients.ask("ann", f"call/{name}/{event}") == 200
    assert clients.ask("bob", "queue/data", query=f"session_hash={event}") == 403


CALLS = {
    "call/x": ({"data": []}, 404, "no such endpoint"),
    "call/v2/x": ({}, 404, "no such endpoint"),
    "queue/join": ({"data": ["x"], "session_hash": "a", "fn_index": 0}, 422, "a list of 2"),
    "call/greet": ({"data": ["x"]}, 422, "a list of 2"),
    "call/greet/": ({"data": "x"}, 422, "a list of 2"),
    "call/v2/greet": ({"count": 2}, 422, "'name' is missing"),
    "call/v2/greet/": ({"name": "x", "cuont": 2}, 422, "no parameter 'cuont'; there are name, count"),
}


@pytest.mark.parametrize("path", CALLS)
def test_an_invalid_api_call_is_refused_with_a_message(clients, path):
    body, status, words = CALLS[path]
    texts = []
    assert clients.ask("ann", path, body=body, texts=texts) == status
    assert words in "".join(texts) and not clients.gradio.bodies


BAD = [b"", b"[]", b"7", b"{}", b"\xff", b'{"session_hash": null}', b'{"session_hash": ["x"]}', b'{"session_hash": ""}']
BAD += [b"[" * 50_000, b'{"session_hash": ' + b"1" * 5000 + b"}", b'{"session_hash": "a\\nb"}']
BAD += [b'{"session_hash": "\\ud800"}', json.dumps({"session_hash": "x" * 65}).encode()]


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
def test_requests_with_an_invalid_session_hash_are_refused(clients, body):
    for path in ("queue/join", "cancel"):
        assert clients.ask("ann", path, body=body) == 400
    assert clients.ask("ann", "queue/data", query="session_hash=") == 400
    assert clients.ask("ann", f"heartbeat/{'x' * 65}") == 400
    assert clients.ask("ann", "call/greet", body={"data": ["x", 1], "session_hash": "a"}) == 400
    assert clients.gradio.bodies == []


@pytest.mark.parametrize("number", [1, -1, "x", None, 10**30, {}, [0], 0.5])
def test_an_unknown_endpoint_index_is_refused(clients, number):
    body = {"session_hash": "anns", "fn_index": number, "data": []}
    assert clients.ask("ann", "queue/join", body=body) == 404 and not clients.gradio.bodies


def test_paths_that_need_no_login_are_passed_on(clients):
    assert clients.ask(None, "/page/js/main.js") == 200


def test_only_a_users_own_oldest_sessions_are_deleted(clients):
    states = clients.gradio.state_holder.session_data
    clients.join("ann", "anns")
    clients.gradio.events["event"] = SimpleNamespace(session_hash="bobs3", username="bob")  # it is running
    for number in range(MAX_SESSIONS + 10):
        assert clients.join("bob", f"bobs{number}") == 200
        clients.gradio.messages[f"bobs{number}"] = "an answer"
    gone = [f"bobs{number}" for number in range(11) if number != 3]
    assert clients.gradio.state_holder.deleted == gone
    assert "anns" in states and f"bobs{MAX_SESSIONS + 9}" in states and len(states) == MAX_SESSIONS + 1
    assert not set(gone) & set(clients.gradio.messages) and len(clients.middleware._sessions["bob"]) == MAX_SESSIONS


@pytest.fixture
def soon(monkeypatch):
    """A session is abandoned after 0.05 s."""
    monkeypatch.setattr(client_sessions, "ABANDONED_SECONDS", 0.05)
    return 0.12


@pytest.mark.parametrize("stream", ["queue/data", "heartbeat/bobs"])
def test_jobs_run_while_a_connection_is_open_and_end_when_it_is_not_renewed(clients, soon, stream):
    clients.gradio.messages["bobs"] = clients.gradio.state_holder.session_data["bobs"] = "kept"

    async def go():
        query = "" if stream.startswith("heartbeat") else "session_hash=bobs"
        await clients.begin("bob", "queue/join", body=JOIN)
        for seconds in (soon, 0):  # it comes back in time
            gone = anyio.Event()
            async with anyio.create_task_group() as group:
                group.start_soon(lambda gone=gone: clients.begin("bob", stream, query, gone=gone))
                await anyio.sleep(seconds)
                assert not clients.gradio.ended and "bobs" in clients.gradio.state_holder.session_data
                gone.set()
        await anyio.sleep(soon)

    anyio.run(go)
    assert clients.gradio.ended == ["bobs"]
    assert not clients.gradio.state_holder.session_data and not clients.gradio.messages
    assert "bobs" not in clients.middleware._sessions["bob"]


def test_a_job_without_a_connected_client_ends(clients, soon):
    states = clients.gradio.state_holder.session_data

    async def go():
        await clients.begin("bob", "queue/join", body=JOIN)
        clients.gradio.events["event"] = SimpleNamespace(session_hash="bobs", username="bob")
        states["bobs"] = "state"
        while len(clients.gradio.ended) < 2:
            await anyio.sleep(0.01)
        assert states == {"bobs": "state"}  # its step goes on
        assert await clients.begin("bob", "call/greet/bobs") == 404
        del clients.gradio.events["event"]
        while states or clients.middleware._timers or clients.middleware._tasks:
            await anyio.sleep(0.01)

    with anyio.from_thread.start_blocking_portal() as portal:
        portal.start_task_soon(go).result(10)
    assert set(clients.gradio.ended) == {"bobs"}


@pytest.mark.parametrize("user, username", [("bob", "bob"), ("", None)])
def test_queued_events_of_a_user_are_limited(clients, user, username):
    for number in range(MAX_EVENTS):
        assert clients.join(user, "bobs") == 200
        clients.gradio.events[number] = SimpleNamespace(session_hash="bobs", username=username)
    assert clients.join(user, "bobs") == 429 and clients.join("ann", "anns") == 200
    assert clients.ask(user, "call/v2/greet", body={"name": "x"}) == 429
    assert clients.ask(user, "queue/data", query="session_hash=bobs") == 200


KINDS = {
    "/app/events": MAX_PAGES,
    "heartbeat/{}": MAX_HEARTBEATS,
    "queue/data": MAX_STREAMS,
    "upload_progress": MAX_STREAMS,
}


@pytest.mark.parametrize("path", KINDS)
def test_open_connections_of_a_user_are_bounded(clients, path):
    """Of many of bob's as many are answered as he may have open; ann has her own; afterwards bob can open more."""
    gone, statuses, limit = anyio.Event(), [], KINDS[path]

    async def open_one(user, number):
        query = f"session_hash={user}{number}" if path == "queue/data" else ""
        statuses.append(await clients.begin(user, path.format(f"{user}{number}"), query, gone=gone))

    async def go():
        async with anyio.create_task_group() as group:
            for number in range(limit + 20):
                group.start_soon(open_one, "bob", number)
            await anyio.wait_all_tasks_blocked()
            assert statuses == [429] * 20
            group.start_soon(open_one, "ann", 0)
            await anyio.wait_all_tasks_blocked()
            gone.set()
        assert statuses.count(200) == limit + 1
        await open_one("bob", 1)

    anyio.run(go)
    assert statuses[-1] == 200
    assert not +clients.middleware._connections and not clients.middleware._open_sessions
