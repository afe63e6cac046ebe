"""Serve a fleet over HTTP: who asks is checked before anything is read, and what is read is bounded.

GET  /health                 without a key whether it works; with one the replicas, the queue and the model
GET  /concepts/IDENTITY      whether the user has uploaded a concept
PUT  /concepts/IDENTITY      upload one
POST /generate               images; their events as JSON lines, or as server-sent events if the client accepts them
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ...errors import UserError
from ...version import __version__
from ..image_task import INPUTS
from ..store import Store, StoreError
from .dispatcher import Busy, Dispatcher, Generation
from .forms import MAX_BODY, Form, parse_form
from .messages import ReplicaPool
from .uploaded_concepts import MAX_CONCEPT_BYTES, UploadedConcepts

log = logging.getLogger(__name__)
LOCAL_USER = "me"  # where nobody needs a key
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
MAX_PENDING, MAX_USER_PENDING = 2 << 30, 600 << 20  # bytes of bodies that are being received or checked
FORM_SECONDS, UPLOAD_SECONDS = 60.0, 900.0  # for a body
_NAME = re.compile(r"[0-9a-f]{64}(-[0-9a-f]{16})?")
_EVENT_STREAM = "text/event-stream"


class Refusal(Exception):
    """A request is refused with a status, a message and a hint. more: of the answer's JSON."""

    def __init__(self, status: int, message: str, hint: str = "", **more: Any):
        super().__init__(message)
        self.status, self.content = status, {"message": message, "hint": hint, **more}


class FleetServer:
    """The routes. keys: by user's name; {} lets everybody on this machine in as one user."""

    def __init__(self, pool: ReplicaPool, store: Store, keys: Mapping[str, str]):
        self._pool, self._store = pool, store
        self._digests = {name: _digest(key) for name, key in keys.items()}
        self._concepts = UploadedConcepts(store)
        self._dispatcher = Dispatcher(pool)
        self._pending: dict[str, int] = {}  # bytes of bodies that are in memory, by user
        self._uploads: set[str] = set()  # users

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self._dispatcher.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # --- routes -------------------------------------------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        health = self._pool.health()
        status = "ready" if health.running else "starting"
        try:
            self._user(request)
        except Refusal:
            return JSONResponse({"status": status}, 200 if health.running else 503)
        queue = {"waiting": self._dispatcher.waiting, "generating": self._dispatcher.generating}
        replicas = {"running": health.running, "starting": health.starting}
        content = {"status": status, "version": __version__, "replicas": replicas, "queue": queue}
        return JSONResponse(content | {"model": dict(health.model)})

    async def concept(self, request: Request) -> Response:
        user, name = self._user(request), _concept_name(request)
        size = await asyncio.to_thread(self._concepts.size, user, name)
        if size is None:
            raise Refusal(404, "You have uploaded no such concept.", "PUT its file here.")
        return JSONResponse({"name": name, "bytes": size})

    async def upload(self, request: Request) -> Response:
        user, name = self._user(request), _concept_name(request)
        size = _announced_length(request, MAX_CONCEPT_BYTES)
        await asyncio.to_thread(self._concepts.check_room, user, size)
        if user in self._uploads:
            raise Refusal(429, "You are uploading another concept.", "Upload one after the other.")
        self._uploads.add(user)
        try:
            with self._holding(user, size):
                data = await _read(request, size, UPLOAD_SECONDS)
                added = await asyncio.to_thread(self._concepts.add, user, name, data)
        finally:
            self._uploads.discard(user)
        return JSONResponse({"name": added, "bytes": len(data)})

    async def generate(self, request: Request) -> Response:
        user = self._user(request)
        size = _announced_length(request, MAX_BODY)
        self._dispatcher.check_room(user)
        session = secrets.token_hex(8)
        with self._holding(user, size):
            body = await _read(request, size, FORM_SECONDS)
            form = await asyncio.to_thread(parse_form, body, session)
        if missing := await asyncio.to_thread(self._concepts.missing, user, form.concepts):
            raise Refusal(409, "Some concepts are not on the fleet.", "PUT /concepts/IDENTITY.", missing=missing)
        self._dispatcher.check_room(user, len(form.tasks))
        await asyncio.to_thread(self._put_files, form)
        generation = Generation(user, form.tasks)
        is_sse = _EVENT_STREAM in request.headers.get("accept", "")
        return _EventStream(self, generation, f"{INPUTS}/{session}" if form.files else "", is_sse)

    # --- who asks, and what is read -----------------------------------------------------------------------------------

    def _user(self, request: Request) -> str:
        """Return who asks. Raises Refusal."""
        if "origin" in request.headers:  # a page in a browser, which would use a key that is not its own
            raise Refusal(403, "Pages of a browser cannot use the fleet.")
        if not self._digests:
            host = request.headers.get("host", "")
            if re.sub(r":\d{1,5}$", "", host) not in LOCAL_NAMES:
                raise Refusal(403, "Without --keys the fleet is for this machine only.")
            return LOCAL_USER
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        sent = _digest(key.strip())
        # All are compared, each in constant time, so that the time does not tell how near a guess was.
        users = [name for name, digest in self._digests.items() if hmac.compare_digest(sent, digest)]
        if scheme.lower() != "bearer" or not users:
            raise Refusal(401, "The key is missing or wrong.", "Send the header: Authorization: Bearer KEY.")
        return users[0]

    @contextmanager
    def _holding(self, user: str, size: int) -> Iterator[None]:
        """Count a body that is in memory. Raises Refusal if there are too many already."""
        if self._pending.get(user, 0) + size > MAX_USER_PENDING and user in self._pending:
            raise Refusal(429, "Too much of yours is being received.", "Send one request after the other.")
        if sum(self._pending.values()) + size > MAX_PENDING:
            raise Refusal(503, "Too much is being received.", "Try again in a minute.")
        self._pending[user] = self._pending.get(user, 0) + size
        try:
            yield
        finally:
            self._pending[user] -= size
            if not self._pending[user]:
                del self._pending[user]

    def _put_files(self, form: Form) -> None:
        for key, data in form.files.items():
            self._store.write(key, data)

    # --- one request --------------------------------------------------------------------------------------------------

    def begin(self, generation: Generation) -> AsyncIterator[dict[str, Any]]:
        """Put a request into its user's line; return its events."""
        self._dispatcher.submit(generation)
        return generation.events(self._dispatcher)

    async def end(self, generation: Generation, folder: str) -> None:
        """Forget a request, and remove its files."""
        self._dispatcher.end(generation)
        if folder:
            with suppress(UserError):
                await asyncio.to_thread(self._store.remove, folder)


class _EventStream(StreamingResponse):
    """The events of a request. It ends with the client: what is being generated ends at its next step."""

    def __init__(self, server: FleetServer, generation: Generation, folder: str, is_sse: bool):
        self._server, self._generation, self._folder = server, generation, folder
        self._encode = _as_sse if is_sse else _as_line
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
        super().__init__((), headers=headers, media_type=_EVENT_STREAM if is_sse else "application/x-ndjson")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            events = self._server.begin(self._generation)
            self.body_iterator = (self._encode(event) async for event in events)
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.shield(self._server.end(self._generation, self._folder))


def build_server(pool: ReplicaPool, store: Store, keys: Mapping[str, str]) -> Starlette:
    """Return the ASGI program. keys: by user's name; {} for this machine only."""
    server = FleetServer(pool, store, keys)
    routes = [
        Route("/health", _in_words(server.health), methods=["GET"]),
        Route("/concepts/{name}", _in_words(server.concept), methods=["GET"]),
        Route("/concepts/{name}", _in_words(server.upload), methods=["PUT"]),
        Route("/generate", _in_words(server.generate), methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=server.lifespan)


def _in_words(route: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Answer every error as JSON with a message and a hint."""

    async def answered(request: Request) -> Response:
        try:
            return await route(request)
        except Refusal as refusal:
            return JSONResponse(refusal.content, refusal.status)
        except ClientDisconnect:
            return Response(status_code=400)
        except UserError as error:
            return JSONResponse({"message": error.message, "hint": error.hint}, _status_of(error))
        except Exception as error:
            log.error("A request failed.", exc_info=error)
            return JSONResponse({"message": "The fleet failed; its log says why.", "hint": "Try again."}, 500)

    return answered


def _status_of(error: UserError) -> int:
    if isinstance(error, Busy):
        return 429 if error.is_own else 503
    return 503 if isinstance(error, StoreError) else 400


async def _read(request: Request, size: int, seconds: float) -> bytes:
    """Receive a body of an announced length. Raises Refusal, ClientDisconnect."""
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > size:
                    raise Refusal(400, "The body is longer than its Content-Length.")
    except TimeoutError:
        raise Refusal(408, "The request was sent too slowly.") from None
    return bytes(body)


def _concept_name(request: Request) -> str:
    name = request.path_params["name"]
    if not _NAME.fullmatch(name):
        raise Refusal(404, "A concept's identity has 64 hexadecimal digits.")
    return name


def _announced_length(request: Request, max_bytes: int) -> int:
    """Return the body's length, which must be announced. Raises Refusal."""
    announced = request.headers.get("content-length", "")
    if not (announced.isascii() and announced.isdigit()):
        raise Refusal(411, "The request has no Content-Length.")
    if len(announced) > 18 or int(announced) > max_bytes:
        raise Refusal(413, f"At most {max_bytes >> 20} MB are accepted at once.")
    return int(announced)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _as_line(event: dict[str, Any]) -> bytes:
    return json.dumps(_with_text(event)).encode() + b"\n"


def _as_sse(event: dict[str, Any]) -> bytes:
    return f"event: {event['event']}\ndata: {json.dumps(_with_text(event))}\n\n".encode()


def _with_text(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event with its bytes as base64."""
    return {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in event.items()
    }
