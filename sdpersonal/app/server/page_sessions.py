"""Give each page to the user who opened it, and each user a bounded number of pages.

A page makes up a session hash and sends it with all that it asks for. It stands behind `RequestBodyMiddleware`, which
limits the bodies read here, and `SecurityMiddleware`, which knows the user.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import anyio
from gradio.blocks import Blocks
from gradio.state_holder import SessionState, StateHolder
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .login import read_body, replay
from .middleware import USER_KEY
from .request_bodies import MAX_BODY

MAX_PAGES = 100  # pages of a user whose state is kept; older ones that are closed are forgotten first
MAX_SILENT_PAGES = 8  # of those, pages that never had a heartbeat: no browser opens such
ABANDONED_SECONDS = 20.0  # without any open connection, after which a page's jobs are ended
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
        # By user; of each session whether it ever had a heartbeat.
        self._sessions: defaultdict[str, OrderedDict[str, bool]] = defaultdict(OrderedDict)
        self._connections: Counter[tuple[str, str]] = Counter()  # open ones, by user and kind
        self._open_sessions: Counter[str] = Counter()  # connections that belong to a session
        self._timers: dict[str, asyncio.TimerHandle] = {}  # of sessions without any
        self._tasks: set[asyncio.Task[None]] = set()
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
            for session in sessions:
                self._watch(scope["app"], user, session)

    def _belongs_to(self, session: str, user: str) -> bool:
        return all(owner == user or session not in sessions for owner, sessions in self._sessions.items())

    async def _remember(self, scope: Scope, user: str, session: str) -> None:
        sessions = self._sessions[user]
        is_new = session not in sessions
        sessions[session] = sessions.get(session, False) or scope["path"].startswith(_HEARTBEAT)
        sessions.move_to_end(session)
        if len(sessions) > _MAX_SESSIONS:
            sessions.popitem(last=False)
        if is_new:
            await self._limit_states(scope["app"], sessions)

    async def _limit_states(self, app: Any, sessions: OrderedDict[str, bool]) -> None:  # Gradio's App
        """Forget the states of the user's longest unused pages that are closed, to leave room for one more."""
        states, running = app.state_holder, _running_sessions(app)
        known = [session for session in list(states.session_data) if session in sessions]
        closed = [session for session in known if not self._open_sessions[session]]
        silent = [session for session in closed if not sessions[session] and session not in running]
        forgotten = silent[: max(0, len(silent) - MAX_SILENT_PAGES + 1)]
        closed = [session for session in closed if session not in forgotten]
        for session in forgotten + closed[: max(0, len(known) - len(forgotten) - MAX_PAGES + 1)]:
            await self._forget(states, session)

    async def _forget(self, states: StateHolder, session: str) -> None:
        states.delete_state(session)
        states.session_data.pop(session, None)
        states.time_last_used.pop(session, None)
        await anyio.to_thread.run_sync(self.close_page, session)

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
        async with self._closing:
            if self._open_sessions[session]:
                return
            queue = app.get_blocks()._queue
            await queue.clean_events(session_hash=session)
            if self._sessions[user].get(session, False):  # a page: its images stay, should it come back
                return
            await self._forget(app.state_holder, session)
            queue.pending_messages_per_session.pop(session, None)
            queue.pending_event_ids_session.pop(session, None)
        if session in _running_sessions(app):  # its last step gives the session a state again
            self._watch(app, user, session)

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
                self._watch(scope["app"], user, session)


def _running_sessions(app: Any) -> set[str]:
    return {event.session_hash for event in app.get_blocks()._queue.event_ids_to_events.values()}


class PageStates(StateHolder):
    """Gradio's states of pages, each without the settings of every component.

    Gradio copies those, half a megabyte, to answer with a link to a copy of the page; there are no such links here.
    """

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = _PageState(self.blocks)
        return super().__getitem__(session_id)


class _PageState(SessionState):
    def __init__(self, blocks: Blocks):
        without_copies = SimpleNamespace(default_config=blocks.default_config, blocks={})
        super().__init__(without_copies)  # type: ignore[arg-type]  # it takes no more of it
        self.config_values = _Nothing()


class _Nothing(dict[int, dict]):
    """A dictionary that keeps nothing, and has an empty value for every key."""

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: int) -> dict:
        return {}

    def __setitem__(self, key: int, value: dict) -> None:
        pass


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
