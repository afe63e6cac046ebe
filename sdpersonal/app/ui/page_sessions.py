"""Give each page to the user who opened it, and each user a bounded number of pages.

A page makes up a session hash and sends it with all that it asks for. It stands behind `RequestBodyMiddleware`, which
limits the bodies read here, and `SecurityMiddleware`, which knows the user.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from urllib.parse import parse_qs

import anyio
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .login import read_body, replay
from .middleware import USER_KEY
from .request_bodies import MAX_BODY

MAX_PAGES = 100  # pages of a user whose state is kept; older ones that are closed are forgotten first
MAX_HEARTBEATS, MAX_STREAMS = 100, 300  # connections of a user that stay open: one a page, and one a running event
MAX_WAITING = 50  # events of a user that wait in Gradio's queue, which has room for `server.MAX_QUEUE` of all users
_MAX_SESSIONS = 5000  # session hashes remembered for a user
_MAX_NAME = 64  # characters of a session hash; Gradio's pages take 11
_JOIN, _HEARTBEAT = "/gradio_api/queue/join", "/gradio_api/heartbeat/"
_STREAMS = ("/gradio_api/queue/data", "/gradio_api/upload_progress")
_SESSION_BODIES = (_JOIN, "/gradio_api/cancel")


class PageSessionMiddleware:
    """ASGI middleware. close_page: function that deletes what a page with this session hash left."""

    def __init__(self, app: ASGIApp, close_page: Callable[[str], None]):
        self.app, self.close_page = app, close_page
        self._sessions: defaultdict[str, OrderedDict[str, None]] = defaultdict(OrderedDict)  # by user
        self._connections: Counter[tuple[str, str]] = Counter()  # open ones, by user and kind
        self._open_sessions: Counter[str] = Counter()  # connections that belong to a session
        # Gradio cleans up after each page that is closed, in its event loop: many at once would stop it for seconds.
        self._closing = asyncio.Semaphore(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user = scope.get(USER_KEY)
        if scope["type"] != "http" or user is None:
            await self.app(scope, receive, send)
            return
        try:
            sessions, receive = await _sessions_of(scope, receive)
        except ClientDisconnect:
            return
        except (ValueError, RecursionError):
            await PlainTextResponse("That is not what a page sends.", 400)(scope, receive, send)
            return
        if not all(self._belongs_to(session, user) for session in sessions):
            await PlainTextResponse("This page belongs to another user.", 403)(scope, receive, send)
            return
        if user and scope["path"] == _JOIN and _waiting_events(scope, user) >= MAX_WAITING:
            await PlainTextResponse("Too many of your requests are waiting. Try again later.", 429)(
                scope, receive, send
            )
            return
        for session in sessions:
            await self._remember(scope, user, session)
        if scope["path"].startswith((_HEARTBEAT, *_STREAMS)):
            await self._stream(scope, receive, send, user, sessions)
        else:
            await self.app(scope, receive, send)

    def _belongs_to(self, session: str, user: str) -> bool:
        return all(owner == user or session not in sessions for owner, sessions in self._sessions.items())

    async def _remember(self, scope: Scope, user: str, session: str) -> None:
        sessions = self._sessions[user]
        is_new = session not in sessions
        sessions[session] = None
        sessions.move_to_end(session)
        if len(sessions) > _MAX_SESSIONS:
            sessions.popitem(last=False)
        if is_new:
            await self._limit_states(scope["app"].state_holder, sessions)

    async def _limit_states(self, states, sessions: OrderedDict[str, None]) -> None:  # Gradio's StateHolder
        """Forget the states of the user's longest unused pages that are closed, to leave room for one more."""
        known = [session for session in list(states.session_data) if session in sessions]
        closed = [session for session in known if not self._open_sessions[session]]
        for session in closed[: max(0, len(known) - MAX_PAGES + 1)]:
            states.delete_state(session)
            states.session_data.pop(session, None)
            states.time_last_used.pop(session, None)
            await anyio.to_thread.run_sync(self.close_page, session)

    async def _stream(self, scope: Scope, receive: Receive, send: Send, user: str, sessions: list[str]) -> None:
        """Answer with a connection that stays open. Each heartbeat ends in its turn."""
        heartbeat = scope["path"].startswith(_HEARTBEAT)
        kind, limit = ("heartbeat", MAX_HEARTBEATS) if heartbeat else ("stream", MAX_STREAMS)
        if self._connections[user, kind] >= limit:
            await PlainTextResponse("Too many pages are open. Close some.", 429)(scope, receive, send)
            return
        in_turn = False

        async def receive_in_turn() -> Message:
            nonlocal in_turn
            message = await receive()
            if message["type"] == "http.disconnect" and not in_turn:
                await self._closing.acquire()
                in_turn = True
            return message

        self._connections[user, kind] += 1
        self._open_sessions.update(sessions)
        try:
            await self.app(scope, receive_in_turn if heartbeat else receive, send)
        finally:
            if in_turn:
                self._closing.release()
            self._connections[user, kind] -= 1
            self._open_sessions.subtract(sessions)
            for session in sessions:
                if not self._open_sessions[session]:
                    del self._open_sessions[session]


def _waiting_events(scope: Scope, user: str) -> int:
    queues = scope["app"].get_blocks()._queue.event_queue_per_concurrency_id.values()
    return sum(event.username == user for queue in queues for event in queue.queue)


async def _sessions_of(scope: Scope, receive: Receive) -> tuple[list[str], Receive]:
    """Return every session hash in a request, and a function that receives its body.

    Raises:
        ValueError: A hash is missing, or is not as pages make them up.
    """
    path, query = scope["path"], scope["query_string"].decode("latin-1")
    sessions: list[object] = [*parse_qs(query, keep_blank_values=True).get("session_hash", ())]
    if path.startswith(_HEARTBEAT):
        sessions.append(path.removeprefix(_HEARTBEAT))
    if scope["method"] == "POST" and path in _SESSION_BODIES:
        body = await read_body(receive, MAX_BODY)
        receive = replay(body, receive)
        sessions += _body_sessions(scope, body)
    texts = [session for session in sessions if isinstance(session, str) and _is_name(session)]
    if len(texts) != len(sessions):
        raise ValueError
    return texts, receive


def _is_name(session: str) -> bool:
    return 0 < len(session) <= _MAX_NAME and session.isprintable()


def _body_sessions(scope: Scope, body: bytes) -> list[object]:
    """Return the session hash in a JSON body, and that of the event that it names."""
    content = json.loads(body)
    if not isinstance(content, dict):
        raise ValueError
    handler = content.get("fn_index")  # for one that does not exist Gradio fails with a KeyError
    if scope["path"] == _JOIN and not (isinstance(handler, int) and handler in scope["app"].get_blocks().fns):
        raise ValueError
    sessions = [content.get("session_hash")]
    if isinstance(event_id := content.get("event_id"), str):  # of an event to cancel
        event = scope["app"].get_blocks()._queue.event_ids_to_events.get(event_id)
        sessions += [event.session_hash] if event else []
    return sessions
