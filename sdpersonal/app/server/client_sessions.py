"""Give each session of the HTTP API to the user who began it, and each user a bounded number of open connections.

A client of the API makes up a session hash and sends it with all that it asks for; for one that does not (curl), the
event is a session of its own. It stands behind `RequestBodyMiddleware`, which limits the bodies read here, and
`SecurityMiddleware`, which knows the user.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, OrderedDict, defaultdict
from typing import Any
from urllib.parse import parse_qs

from gradio.utils import get_function_params
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..routes.requests import USER_KEY
from .login import read_body, replay
from .request_bodies import MAX_BODY

MAX_PAGES = 100  # streams of events to a user's pages
MAX_HEARTBEATS, MAX_STREAMS = 100, 300  # connections of a user's API clients: one a client, and one a running event
MAX_EVENTS = 50  # of a user that wait or run in Gradio's queue, which has room for `server.MAX_QUEUE` of all users
MAX_SESSIONS = 200  # of a user that are remembered; older ones without a connection are forgotten first
ABANDONED_SECONDS = 60.0  # without any open connection, after which a session's events are ended
_MAX_NAME = 64  # characters of a session hash; Gradio's Python client takes 36
PAGE_EVENTS = "/app/events"
_JOIN, _CALL, _HEARTBEAT = "/gradio_api/queue/join", "/gradio_api/call/", "/gradio_api/heartbeat/"
_CANCEL, _DATA, _PROGRESS = "/gradio_api/cancel", "/gradio_api/queue/data", "/gradio_api/upload_progress"

_Refusal = tuple[int, str]  # status, text


class ClientSessionMiddleware:
    """ASGI middleware that knows whose each session of the API is, and which of them have a connection."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self._sessions: defaultdict[str, OrderedDict[str, None]] = defaultdict(OrderedDict)  # by user, oldest first
        self._connections: Counter[tuple[str, str]] = Counter()  # open ones, by user and kind
        self._open_sessions: Counter[str] = Counter()  # connections that belong to a session
        self._timers: dict[str, asyncio.TimerHandle] = {}  # of sessions without any
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user = scope.get(USER_KEY)
        if scope["type"] != "http" or user is None:
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if path in (PAGE_EVENTS, _PROGRESS):
            kind, limit = ("page", MAX_PAGES) if path == PAGE_EVENTS else ("stream", MAX_STREAMS)
            await self._stream(scope, receive, send, (user, kind), limit, [])
        elif path.startswith((_JOIN, _CALL, _HEARTBEAT, _CANCEL, _DATA)):
            await self._api(scope, receive, send, user)
        else:
            await self.app(scope, receive, send)

    async def _api(self, scope: Scope, receive: Receive, send: Send, user: str) -> None:
        path, posts = scope["path"], scope["method"] == "POST"
        try:
            content = {}
            if posts:
                body = await read_body(receive, MAX_BODY)
                content, receive = _json_object(body), replay(body, receive)
            sessions = _sessions_of(scope, content)
        except ClientDisconnect:
            return
        except (ValueError, RecursionError):
            await PlainTextResponse("That is not what a client sends.", 400)(scope, receive, send)
            return
        begins = posts and path.startswith((_JOIN, _CALL))
        if refusal := self._refusal(scope, content, user, sessions, begins):
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, send)
            return
        for session in sessions:
            self._remember(scope["app"], user, session)
        if posts:
            calls = path.startswith(_CALL)
            await self.app(scope, receive, self._reader_of_id(scope["app"], user, send) if calls else send)
            for session in sessions:
                self._watch(scope["app"], user, session)
        else:
            kind, limit = ("heartbeat", MAX_HEARTBEATS) if path.startswith(_HEARTBEAT) else ("stream", MAX_STREAMS)
            await self._stream(scope, receive, send, (user, kind), limit, sessions)

    def _refusal(
        self, scope: Scope, content: dict[str, Any], user: str, sessions: list[str], begins: bool
    ) -> _Refusal | None:
        app, path = scope["app"], scope["path"]
        if not all(self._belongs_to(session, user) for session in sessions):
            return 403, "This session belongs to another user."
        if path.startswith(_CALL) and not begins and not all(name in self._sessions[user] for name in sessions):
            return 404, "There is no such event, or it is over."
        if begins and (refusal := _call_refusal(app, path, content)):
            return refusal
        if begins and _event_count(app, user) >= MAX_EVENTS:
            return 429, "Too many of your requests are waiting. Try again later."
        return None

    def _belongs_to(self, session: str, user: str) -> bool:
        return all(owner == user or session not in sessions for owner, sessions in self._sessions.items())

    def _remember(self, app: Any, user: str, session: str) -> None:  # Gradio's App
        """Note whose the session is; forget the user's oldest ones that nothing uses, to leave room for it."""
        sessions = self._sessions[user]
        sessions[session] = None
        sessions.move_to_end(session)
        running = _running_sessions(app)
        unused = [
            name for name in sessions if name != session and not self._open_sessions[name] and name not in running
        ]
        for name in unused[: max(0, len(sessions) - MAX_SESSIONS)]:
            self._forget(app, user, name)

    def _forget(self, app: Any, user: str, session: str) -> None:  # Gradio's App
        """Drop what Gradio keeps for the session: its state, and answers that nobody fetched."""
        states, queue = app.state_holder, app.get_blocks()._queue
        states.delete_state(session)
        states.session_data.pop(session, None)
        states.time_last_used.pop(session, None)
        queue.pending_messages_per_session.pop(session, None)
        queue.pending_event_ids_session.pop(session, None)
        self._sessions[user].pop(session, None)
        if timer := self._timers.pop(session, None):
            timer.cancel()

    def _watch(self, app: Any, user: str, session: str) -> None:  # Gradio's App
        """End what a session left if it has no connection now, and opens none for a while."""

        def end() -> None:
            self._timers.pop(session, None)
            task = asyncio.create_task(self._end_abandoned(app, user, session))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        if timer := self._timers.pop(session, None):
            timer.cancel()
        if not self._open_sessions[session]:
            self._timers[session] = asyncio.get_running_loop().call_later(ABANDONED_SECONDS, end)

    async def _end_abandoned(self, app: Any, user: str, session: str) -> None:
        if self._open_sessions[session]:
            return
        await app.get_blocks()._queue.clean_events(session_hash=session)
        self._sessions[user].pop(session, None)  # whoever asks for its answer now would wait for ever
        if session in _running_sessions(app):  # its last step gives the session a state again
            self._watch(app, user, session)
        else:
            self._forget(app, user, session)

    async def _stream(
        self, scope: Scope, receive: Receive, send: Send, kind: tuple[str, str], limit: int, sessions: list[str]
    ) -> None:
        """Answer with a connection that stays open. kind: the user and what it is."""
        if self._connections[kind] >= limit:
            text = "Too many pages are open. Close some." if kind[1] == "page" else "Too many connections are open."
            await PlainTextResponse(text, 429)(scope, receive, send)
            return
        self._connections[kind] += 1
        self._open_sessions.update(sessions)
        try:
            await self.app(scope, receive, send)
        finally:
            self._connections[kind] -= 1
            self._open_sessions.subtract(sessions)
            for session in sessions:
                if not self._open_sessions[session]:
                    del self._open_sessions[session]
                self._watch(scope["app"], kind[0], session)

    def _reader_of_id(self, app: Any, user: str, send: Send) -> Send:
        """Return a function that sends on the answer to a call, and remembers the event that it names."""

        async def send_read(message: Message) -> None:
            if message["type"] == "http.response.body" and b'"event_id"' in message.get("body", b""):
                event = json.loads(message["body"]).get("event_id")
                self._remember(app, user, event)
                self._watch(app, user, event)
            await send(message)

        return send_read


def _running_sessions(app: Any) -> set[str]:
    return {event.session_hash for event in app.get_blocks()._queue.event_ids_to_events.values()}


def _event_count(app: Any, user: str) -> int:
    events = app.get_blocks()._queue.event_ids_to_events.values()
    return sum((event.username or "") == user for event in list(events))


def _call_refusal(app: Any, path: str, content: dict[str, Any]) -> _Refusal | None:
    """Return why an endpoint cannot be called so: Gradio would fail with an error of its own."""
    functions, name, number = app.get_blocks().fns, path.removeprefix(_CALL).strip("/"), content.get("fn_index")
    if path.startswith(_JOIN):
        function = functions.get(number) if isinstance(number, int) else None
    else:
        function = next((fn for fn in functions.values() if fn.api_name == name.removeprefix("v2/")), None)
    if function is None:
        return 404, "There is no such endpoint."
    if path.startswith(_JOIN) or not name.startswith("v2/"):
        is_whole = isinstance(content.get("data"), list) and len(content["data"]) == len(function.inputs)
        return None if is_whole else (422, f'"data" must be a list of {len(function.inputs)} values.')
    parameters = parameters_of(function.fn)
    if unknown := [key for key in content if key not in parameters]:
        return 422, f"There is no parameter {unknown[0][:60]!r}; there are {', '.join(parameters)}."
    if missing := [key for key, is_needed in parameters.items() if is_needed and key not in content]:
        return 422, f"The parameter {missing[0]!r} is missing."
    return None


def parameters_of(function: Any) -> dict[str, bool]:
    """Return the names of an endpoint's parameters, and whether they must be given."""
    return {name: not has_default for name, has_default, *_ in get_function_params(function)}


def _json_object(body: bytes) -> dict[str, Any]:
    content = json.loads(body)
    if not isinstance(content, dict):
        raise ValueError
    return content


def _sessions_of(scope: Scope, content: dict[str, Any]) -> list[str]:
    """Return every session hash in a request. Raises ValueError if one is missing, or not as clients make them up."""
    path, query = scope["path"], scope["query_string"].decode("latin-1")
    sessions: list[object] = [*parse_qs(query, keep_blank_values=True).get("session_hash", ())]
    if path.startswith(_HEARTBEAT):
        sessions.append(path.removeprefix(_HEARTBEAT))
    elif scope["method"] != "POST" and path.startswith(_CALL):
        sessions.append(path.rstrip("/").rpartition("/")[2])
    elif scope["method"] == "POST" and path.startswith((_JOIN, _CANCEL)):
        sessions.append(content.get("session_hash"))
    elif "session_hash" in content:  # a call has an event of its own
        raise ValueError
    if isinstance(event_id := content.get("event_id"), str):  # of an event to cancel
        event = scope["app"].get_blocks()._queue.event_ids_to_events.get(event_id)
        sessions += [event.session_hash] if event else []
    texts = [session for session in sessions if isinstance(session, str) and _is_name(session)]
    if len(texts) != len(sessions):
        raise ValueError
    return texts


def _is_name(session: str) -> bool:
    return 0 < len(session) <= _MAX_NAME and session.isprintable()
