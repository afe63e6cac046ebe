"""A page is of the user who opened it, and nobody has any number of them: around a program that answers everything."""

import json
from collections import OrderedDict
from types import SimpleNamespace

import anyio
import anyio.from_thread
import gradio as gr
import pytest
from gradio.state_holder import SessionState

from sdpersonal.app.server import page_sessions
from sdpersonal.app.server.middleware import USER_KEY
from sdpersonal.app.server.page_sessions import (
    MAX_HEARTBEATS,
    MAX_PAGES,
    MAX_SILENT_PAGES,
    MAX_WAITING,
    PageSessionMiddleware,
    PageStates,
)


class States:
    """Gradio's StateHolder: the states of pages, the longest unused first."""

    def __init__(self):
        self.session_data, self.time_last_used, self.deleted = OrderedDict(), {}, []

    def delete_state(self, session):
        self.deleted.append(session)


class Gradio:
    """A program with states and events. A stream ends when its client goes; then a page is cleaned up after."""

    def __init__(self):
        self.state_holder, self.events, self.waiting = States(), {}, []
        self.bodies, self.cleaning, self.most_cleaning = [], 0, 0
        self.messages, self.ended = {}, []

    def get_blocks(self):
        queues = {"on_x": SimpleNamespace(queue=self.waiting)}
        queue = SimpleNamespace(event_ids_to_events=self.events, event_queue_per_concurrency_id=queues)
        queue.pending_messages_per_session = queue.pending_event_ids_session = self.messages
        queue.clean_events = self.clean_events
        return SimpleNamespace(_queue=queue, fns={0: "on_x"})

    async def clean_events(self, session_hash):
        self.ended.append(session_hash)

    async def __call__(self, scope, receive, send):
        body = await receive() if scope["method"] == "POST" else {}
        self.bodies.append(body.get("body"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if "queue/data" in scope["path"]:
            await receive()
        if "heartbeat" in scope["path"]:
            assert (await receive())["type"] == "http.disconnect"
            self.cleaning += 1
            self.most_cleaning = max(self.most_cleaning, self.cleaning)
            await anyio.sleep(0)
            self.cleaning -= 1
        await send({"type": "http.response.body", "body": b"in"})


def encoded(body):
    return body if isinstance(body, bytes) else json.dumps(body).encode()


class Pages:
    """The program behind the middleware, and how to ask."""

    def __init__(self):
        self.gradio, self.closed = Gradio(), []
        self.middleware = PageSessionMiddleware(self.gradio, self.closed.append)

    async def begin(self, user, path, query="", body=None, gone=None):
        """Ask, and return the answer's status. gone: event that the client goes away at."""
        statuses, bodies = [], [] if body is None else [encoded(body)]

        async def receive():
            if bodies:
                return {"type": "http.request", "body": bodies.pop()}
            if gone:
                await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            statuses.append(message.get("status"))

        scope = {"type": "http", "method": "GET" if body is None else "POST", "path": f"/gradio_api/{path}"}
        scope |= {"query_string": query.encode(), "headers": [], "app": self.gradio}
        await self.middleware(scope | ({} if user is None else {USER_KEY: user}), receive, send)
        return statuses[0] if statuses else None

    def ask(self, *request, **more):
        async def go():
            return await self.begin(*request, **more)

        return anyio.run(go)

    def open_page(self, user, session, heartbeat=False):
        if heartbeat:
            self.ask(user, f"heartbeat/{session}")
        status = self.ask(user, "queue/join", body={"session_hash": session, "fn_index": 0})
        self.gradio.state_holder.session_data[session] = "state"
        return status


@pytest.fixture
def pages():
    return Pages()


USES = {
    "join": ("queue/join", {"body": {"session_hash": "anns", "fn_index": 0, "data": []}}),
    "join, twice": ("queue/join", {"body": b'{"fn_index": 0, "session_hash": "evil", "session_hash": "anns"}'}),
    "join, UTF-16": ("queue/join", {"body": json.dumps({"session_hash": "anns", "fn_index": 0}).encode("utf-16")}),
    "join, escaped": ("queue/join", {"body": b'{"session\\u005fhash": "ann\\u0073", "fn_index": 0}'}),
    "data": ("queue/data", {"query": "session_hash=anns"}),
    "data, twice": ("queue/data", {"query": "session_hash=evil&session_hash=anns"}),
    "data, escaped": ("queue/data", {"query": "session%5Fhash=%61nns"}),
    "heartbeat": ("heartbeat/anns", {}),
    "cancel": ("cancel", {"body": {"session_hash": "anns", "fn_index": 1, "event_id": "x"}}),
    "cancel, by the event": ("cancel", {"body": {"session_hash": "evil", "fn_index": 1, "event_id": "anns-event"}}),
}


@pytest.mark.parametrize("use", USES)
def test_a_page_is_of_the_user_who_opened_it(pages, use):
    path, request = USES[use]
    pages.gradio.events["anns-event"] = SimpleNamespace(session_hash="anns")
    assert pages.open_page("ann", "anns") == 200
    seen = len(pages.gradio.bodies)
    assert pages.ask("bob", path, **request) == 403 and len(pages.gradio.bodies) == seen
    if "evil" not in str(request):
        assert pages.ask("ann", path, **request) == 200
        sent = encoded(request["body"]) if "body" in request else None
        assert pages.gradio.bodies[-1] == sent  # Gradio reads what was sent


BAD = [b"", b"[]", b"7", b"{}", b"\xff", b'{"session_hash": null}', b'{"session_hash": ["x"]}', b'{"session_hash": ""}']
BAD += [
    b"[" * 50_000,
    b'{"session_hash": ' + b"1" * 5000 + b"}",
    b'{"session_hash": "a\\nb"}',
    b'{"session_hash": "\\ud800"}',
]
BAD += [json.dumps({"session_hash": "x" * 65}).encode()]


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
def test_a_page_must_have_a_name(pages, body):
    for path in ("queue/join", "cancel"):
        assert pages.ask("ann", path, body=body) == 400
    assert pages.ask("ann", "queue/data", query="session_hash=") == 400
    assert pages.ask("ann", f"heartbeat/{'x' * 65}") == 400
    assert pages.gradio.bodies == []


def test_what_needs_no_login_is_let_through(pages):
    assert pages.ask(None, "theme.css") == 200


@pytest.mark.parametrize("heartbeat, most", [(True, MAX_PAGES), (False, MAX_SILENT_PAGES)])
def test_only_a_users_own_old_pages_are_forgotten(pages, heartbeat, most):
    states = pages.gradio.state_holder.session_data
    pages.open_page("ann", "anns")
    for number in range(most + 30):
        assert pages.open_page("bob", f"bobs{number}", heartbeat) == 200
    assert "anns" in states and len([name for name in states if name.startswith("bobs")]) == most
    oldest = [f"bobs{number}" for number in range(30)]
    assert pages.closed == oldest == pages.gradio.state_holder.deleted and f"bobs{most + 29}" in states


def test_pages_without_a_heartbeat_go_before_others(pages):
    states = pages.gradio.state_holder.session_data
    for number in range(20):
        pages.open_page("bob", f"page{number}", heartbeat=True)
    pages.gradio.events["event"] = SimpleNamespace(session_hash="silent3")  # its answer is on the way
    for number in range(30):
        pages.open_page("bob", f"silent{number}")
    del states["silent3"]
    assert [name for name in states if name.startswith("page")] == [f"page{number}" for number in range(20)]
    assert [name for name in states if name.startswith("silent")] == [f"silent{number}" for number in range(22, 30)]


@pytest.fixture
def soon(monkeypatch):
    """A page is abandoned after 0.05 s."""
    monkeypatch.setattr(page_sessions, "ABANDONED_SECONDS", 0.05)
    return 0.12


JOIN = {"session_hash": "bobs", "fn_index": 0}


@pytest.mark.parametrize("stream", ["queue/data", "heartbeat/bobs"])
def test_jobs_go_on_while_a_connection_is_open_and_end_when_none_comes_back(pages, soon, stream):
    pages.gradio.messages["bobs"] = pages.gradio.state_holder.session_data["bobs"] = "kept"
    heartbeat = stream.startswith("heartbeat")

    async def go():
        query = "" if heartbeat else "session_hash=bobs"
        await pages.begin("bob", "queue/join", body=JOIN)
        for seconds in (soon, 0):  # it comes back in time
            gone = anyio.Event()
            async with anyio.create_task_group() as group:
                group.start_soon(lambda gone=gone: pages.begin("bob", stream, query, gone=gone))
                await anyio.sleep(seconds)
                assert not pages.gradio.ended and "bobs" in pages.gradio.state_holder.session_data
                gone.set()
        await anyio.sleep(soon)

    anyio.run(go)
    assert pages.gradio.ended == ["bobs"]
    assert ("bobs" in pages.gradio.state_holder.session_data) == ("bobs" in pages.gradio.messages) == heartbeat
    assert pages.closed == ([] if heartbeat else ["bobs"])


def test_a_job_that_nobody_looks_at_ends(pages, soon):
    states = pages.gradio.state_holder.session_data

    async def go():
        await pages.begin("bob", "queue/join", body=JOIN)
        pages.gradio.events["event"] = SimpleNamespace(session_hash="bobs")
        states["bobs"] = "state"
        while not pages.closed or not pages.middleware._timers:
            await anyio.sleep(0.01)
        assert pages.gradio.ended == ["bobs"] and not states
        states["bobs"] = "state of its last step"
        del pages.gradio.events["event"]
        while states or pages.middleware._timers or pages.middleware._tasks:
            await anyio.sleep(0.01)

    with anyio.from_thread.start_blocking_portal() as portal:
        portal.start_task_soon(go).result(10)
    assert set(pages.closed) == {"bobs"}


def test_a_state_does_not_copy_the_whole_page():
    with gr.Blocks(analytics_enabled=False) as page:
        boxes = [gr.Textbox(label=str(number)) for number in range(20)]
        counter = gr.State([7])
    states = PageStates()
    states.set_blocks(page)
    state, usual = states["a"], SessionState(page)
    for used in (state, usual):  # as Gradio's events do
        used[boxes[0]._id] = gr.Textbox(label="new", render=False)
        used._update_config(boxes[0]._id)
        used._update_value_in_config(boxes[1]._id, "text")
        used[counter._id].append(8)
        assert used[boxes[0]._id].label == "new" and used[boxes[1]._id] is boxes[1] and used[counter._id] == [7, 8]
    assert states["a"] is state and counter.value == [7] and states["b"][boxes[0]._id] is boxes[0]
    assert len(usual.config_values) >= 20 and len(state.config_values) == 0 == len(list(state.components))


def test_nobody_takes_the_whole_queue(pages):
    for _ in range(MAX_WAITING):
        assert pages.open_page("bob", "bobs") == 200
        pages.gradio.waiting.append(SimpleNamespace(username="bob"))
    assert pages.open_page("bob", "bobs") == 429 and pages.open_page("ann", "anns") == 200
    assert pages.ask("bob", "queue/data", query="session_hash=bobs") == 200


def test_hashes_do_not_pile_up(pages, monkeypatch):
    monkeypatch.setattr(page_sessions, "_MAX_SESSIONS", 10)
    for number in range(30):
        pages.ask("bob", "queue/join", body={"session_hash": f"bobs{number}", "fn_index": 0})
    assert len(pages.middleware._sessions["bob"]) == 10


def test_open_pages_stay_and_are_bounded_and_end_one_by_one(pages):
    """300 heartbeats of bob: as many as he may have open, no more; ann has her own; all ends in its turn."""
    gone, statuses = anyio.Event(), []

    async def heartbeat(user, session):
        statuses.append(await pages.begin(user, f"heartbeat/{session}", gone=gone))

    async def go():
        async with anyio.create_task_group() as group:
            for number in range(300):
                group.start_soon(heartbeat, "bob", f"bobs{number}")
            await anyio.wait_all_tasks_blocked()
            assert statuses == [429] * (300 - MAX_HEARTBEATS)
            group.start_soon(heartbeat, "ann", "anns")
            await anyio.wait_all_tasks_blocked()
            states = pages.gradio.state_holder.session_data
            states |= {f"bobs{number}": "state" for number in range(MAX_HEARTBEATS)}
            for number in range(5):
                await pages.begin("bob", "queue/join", body={"session_hash": f"new{number}", "fn_index": 0})
                states[f"new{number}"] = "state"
            assert pages.closed == ["new0", "new1", "new2", "new3"]  # none that is open
            gone.set()
        assert statuses.count(200) == MAX_HEARTBEATS + 1
        assert await pages.begin("bob", "heartbeat/again", gone=gone) == 200

    anyio.run(go)
    assert pages.gradio.most_cleaning == 1
    assert not +pages.middleware._connections and not pages.middleware._open_sessions
