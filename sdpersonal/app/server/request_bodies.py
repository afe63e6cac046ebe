"""Limit what a client sends before Gradio sees it: bodies by their bytes and values, uploads by files and disk space.

Every body but an upload is received whole first, so that Gradio never begins with a body that is cut, too long, or made
of so many values that parsing it costs more than sending it. `uploads.py` has the folders of uploads.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import parse_qs

import anyio
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..routes.requests import USER_KEY
from .uploads import MAX_UPLOAD, Refusal, UploadFolders, UploadParts, forget_progress, request_folder

UPLOAD, LOGIN, FILE = "/gradio_api/upload", "/login", "/gradio_api/file="
# What takes bodies. Gradio has more routes, which keep what they get, or start programs on it.
_ROUTES = re.compile(rf"{UPLOAD}|{LOGIN}|/app/.+|/gradio_api/(queue/join|cancel|call/(v2/)?\w+)", re.S)
MAX_BODY = 1 << 18  # bytes of a body that is no upload; the largest that the page sends are some thousands
MAX_VALUES = 20_000  # values of a JSON body or fields of a form
MAX_FORM_PARTS = 16  # parts of a form; the login has two
RECEIVE_SECONDS = 60.0  # seconds for a body, or for the next part of an upload
UPLOAD_SECONDS = 3600.0  # seconds for an upload
_MAX_PENDING = 64 << 20  # bytes of bodies that are being received
_MAX_PATH = 4096  # characters
_DRAIN_SECONDS = 2.0  # a client that is still sending would not see the response
_SINGLE_RANGE = re.compile(rb"bytes=(\d{1,18}-\d{0,18}|-\d{1,18})")
_VALUE_MARKS = re.compile(rb"[\[{,:&]")


class RequestBodyMiddleware:
    """ASGI middleware. uploads: the folders that uploads are stored in."""

    def __init__(self, app: ASGIApp, uploads: UploadFolders):
        self.app, self.uploads = app, uploads
        self.served_dir = uploads.served_dir
        self._pending = 0  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Gradio's reader of ranges fails at several ranges; to ignore the header is always allowed (RFC 9110, 14.2).
        scope["headers"] = [
            header for header in scope["headers"] if header[0] != b"range" or _SINGLE_RANGE.fullmatch(header[1])
        ]
        body = _Receiver(receive)
        try:
            route = scope["path"].rstrip("/")
            if scope["method"] in ("GET", "HEAD", "OPTIONS"):
                await self._get(scope, receive, send, route)
            elif scope["method"] != "POST" or not _ROUTES.fullmatch(route):
                raise Refusal(404, "There is nothing to send to here.")
            elif route == UPLOAD:
                await self._upload(scope, body, send)
            else:
                await self.app(scope, await self._received(scope, body), send)
        except Refusal as refusal:
            if refusal.status != 408:
                await body.drain()
            await PlainTextResponse(refusal.message, refusal.status)(scope, receive, send)
        except ClientDisconnect:
            pass

    async def _get(self, scope: Scope, receive: Receive, send: Send, route: str) -> None:
        path = scope["path"]
        if path.startswith(FILE) and not self._is_usable(path.removeprefix(FILE), _owner(scope)):
            raise Refusal(404, "There is no such file, or it is gone.")
        if route != "/gradio_api/upload_progress":
            await self.app(scope, receive, send)
            return
        upload_id = _upload_id(scope)
        try:
            await self.app(scope, receive, send)
        finally:
            forget_progress(upload_id)

    async def _received(self, scope: Scope, body: _Receiver) -> Receive:
        """Receive and check the whole body; return what replays it. Raises Refusal, ClientDisconnect."""
        headers = Headers(scope=scope)
        _check_length(headers, MAX_BODY)
        content = bytearray()
        try:
            with anyio.fail_after(RECEIVE_SECONDS):
                while body.more:
                    chunk = await body.next()
                    content += chunk
                    self._pending += len(chunk)
                    if len(content) > MAX_BODY:
                        raise _too_large(MAX_BODY)
                    if self._pending > _MAX_PENDING:
                        raise Refusal(503, "Too many requests at once; try again in a minute.")
        except TimeoutError:
            raise Refusal(408, "The request was sent too slowly.") from None
        finally:
            self._pending -= len(content)
        whole, content_type = bytes(content), headers.get("content-type", "")
        if parse_options_header(content_type)[0] == b"multipart/form-data":
            UploadParts(content_type, MAX_FORM_PARTS, files_only=False).feed(whole)
        elif len(_VALUE_MARKS.findall(whole)) > MAX_VALUES:
            raise Refusal(413, f"At most {MAX_VALUES:,} values are accepted at once.")
        elif whole and scope["path"].rstrip("/") != LOGIN:
            self._check_paths(whole, _owner(scope))
        return body.replay(whole)

    def _check_paths(self, body: bytes, owner: str) -> None:
        """Raise Refusal unless every uploaded file that a body names is a regular file and this user's.

        Names are {"upload": path} and {"uploads": [paths]} of the page, {"path": path} of Gradio, at any depth. Gradio
        itself only compares names: it keeps any path below its folder in a set of files to delete later, a folder too,
        and would fetch a URL.
        """
        try:
            values = [json.loads(body)]
        except (ValueError, RecursionError):
            raise Refusal(400, "That is not JSON.") from None
        while values:
            value = values.pop()
            if isinstance(value, list):
                values += value
            elif isinstance(value, dict):
                values += value.values()
                if not all(self._is_usable(path, owner) for path in _named_files(value)):
                    raise Refusal(400, "An uploaded file is gone; choose it again.")

    def _is_usable(self, path: object, owner: str) -> bool:
        if not isinstance(path, str) or len(path) > _MAX_PATH:
            return False
        try:
            relative = Path(path).relative_to(self.served_dir)
            resolved = (self.served_dir / relative).resolve(strict=True)
        except (ValueError, OSError, RuntimeError):  # another folder, a NUL, no such file, a loop of links
            return False
        is_regular = resolved == self.served_dir.resolve() / relative and resolved.is_file()
        return is_regular and self.uploads.is_owner(relative, owner)

    async def _upload(self, scope: Scope, body: _Receiver, send: Send) -> None:
        """Let Gradio store the files in a folder of the request's own, and count them as they come."""
        headers = Headers(scope=scope)
        _check_length(headers, MAX_UPLOAD)
        upload_id = _upload_id(scope)
        parts = UploadParts(headers.get("content-type", ""))
        upload = self.uploads.begin(_owner(scope))
        status = 0

        async def receive() -> Message:
            if not body.more:
                return await body.receive()
            try:
                with anyio.fail_after(RECEIVE_SECONDS):
                    chunk = await body.next()
            except TimeoutError:
                raise Refusal(408, "The upload has stopped coming.") from None
            parts.feed(chunk)
            self.uploads.grow(upload, len(chunk))
            return {"type": "http.request", "body": chunk, "more_body": body.more}

        async def watched_send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        folder = request_folder.set(upload.folder)
        try:
            with anyio.fail_after(UPLOAD_SECONDS):
                await self.app(scope, receive, watched_send)
        except TimeoutError:
            raise Refusal(408, "The upload took too long.") from None
        finally:
            request_folder.reset(folder)
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self.uploads.end, upload, status == 200)
            forget_progress(upload_id, seconds=10)


class _Receiver:
    """A request's body, part by part; more: whether some of it is still to come."""

    def __init__(self, receive: Receive):
        self.receive, self.more = receive, True

    async def next(self) -> bytes:
        """Return the next part. Raises ClientDisconnect."""
        message = await self.receive()
        if message["type"] == "http.disconnect":
            self.more = False
            raise ClientDisconnect
        self.more = message.get("more_body", False)
        return message.get("body", b"")

    def replay(self, body: bytes) -> Receive:
        """Return a function that gives the body once, then what else comes: that the client went away."""
        bodies = [body]

        async def receive() -> Message:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            return await self.receive()

        return receive

    async def drain(self) -> None:
        """Read on for a while after a refusal."""
        with anyio.move_on_after(_DRAIN_SECONDS):
            while self.more:
                try:
                    await self.next()
                except ClientDisconnect:
                    return


def _upload_id(scope: Scope) -> str:
    """Return the name under which the page asks for the progress. Raises Refusal for one longer than Gradio's."""
    name = parse_qs(scope["query_string"].decode("latin-1")).get("upload_id", [""])[-1]
    if len(name) > 100:
        raise Refusal(400, "The upload's id is too long.")
    return name


def _named_files(value: dict[str, object]) -> list[object]:
    """Return what stands where an object of JSON names uploaded files; nothing and an empty text name none."""
    uploads = value.get("uploads")
    named = [value.get("path"), value.get("upload"), *(uploads if isinstance(uploads, list) else [uploads])]
    return [path for path in named if path not in (None, "")]


def _owner(scope: Scope) -> str:
    """Return whose the request is: "" for everybody where nobody logs in."""
    return scope.get(USER_KEY) or ""


def _check_length(headers: Headers, max_bytes: int) -> None:
    announced = headers.get("content-length", "0")
    if not (announced.isascii() and announced.isdigit()):
        raise Refusal(400, "Invalid Content-Length.")
    if len(announced) > 18 or int(announced) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> Refusal:
    size = f"{max_bytes >> 20} MB" if max_bytes >= 1 << 20 else f"{max_bytes >> 10} kB"
    return Refusal(413, f"At most {size} are accepted at once.")
