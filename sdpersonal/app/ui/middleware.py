"""Refuse requests before Gradio sees them: other sites' pages, oversized uploads, guessed passwords.

Starlette's `TrustedHostMiddleware` stands before it and refuses other host names.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from pathlib import Path

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import storage

MAX_UPLOAD = 1 << 30  # bytes of a file (a LoRA), of one request, and of all uploads on the disk
MAX_PARTS = 60  # files at once
MIN_FREE_DISK = 2 << 30  # bytes that must stay free on the disk
MAX_BODY = 2 << 20  # bytes of any other request
MAX_FAILED_LOGINS, LOGIN_PAUSE = 5, 30.0  # wrong passwords from one client, and the seconds until the next attempt
_MAX_CLIENTS = 10_000
_DRAIN_MESSAGES = 256  # messages, 64 KB each at most
_UNQUEUED_ROUTES = re.compile(r"/gradio_api/(run|api|call)\b")


class SecurityMiddleware:
    """ASGI middleware. upload_dir: folder where uploads are stored."""

    def __init__(self, app: ASGIApp, upload_dir: Path):
        self.app, self.upload_dir = app, upload_dir
        self._failed_logins: dict[str, list[float]] = defaultdict(list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal:
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, send)
            return
        scope["headers"] = [header for header in scope["headers"] if not header[0].startswith(b"x-forwarded-")]
        if scope["path"].rstrip("/") == "/login":
            send = self._count_failures(_client(scope), send)
        body = LimitedBody(receive, MAX_UPLOAD if _is_upload(scope) else MAX_BODY, headers)
        try:
            await self.app(scope, body.receive, send)
        except TooLarge as error:
            await _drain(receive)
            await PlainTextResponse(str(error), 413)(scope, receive, send)
        except TypeError:  # Gradio raises it for a part without a file name
            if not _is_upload(scope):
                raise
            await PlainTextResponse("That is not an upload.", 400)(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[bytes, str]) -> tuple[int, str] | None:
        host = headers.get(b"host", "")
        origin = headers.get(b"origin")
        # Gradio itself trusts every page on this machine, whatever its port: they could read the images.
        if origin is not None and origin != f"{scope['scheme']}://{host}":
            return 403, "Requests from other sites are refused."
        if _UNQUEUED_ROUTES.match(scope["path"]):
            return 404, "The API is disabled; use the page."
        if scope["path"].rstrip("/") == "/login" and self._must_wait(_client(scope)):
            return 429, f"Too many wrong passwords. Wait {LOGIN_PAUSE:.0f} seconds."
        return self._upload_refusal(headers) if _is_upload(scope) else _length_refusal(headers, MAX_BODY)

    def _upload_refusal(self, headers: dict[bytes, str]) -> tuple[int, str] | None:
        if refusal := _length_refusal(headers, MAX_UPLOAD):
            return refusal
        if storage.free_bytes(self.upload_dir) < MIN_FREE_DISK:
            return 507, "The disk is nearly full."
        if _folder_size(self.upload_dir) > MAX_UPLOAD:
            return 507, "The space for uploads is full; older ones are deleted within an hour."
        return None

    def _must_wait(self, client: str) -> bool:
        if len(self._failed_logins) > _MAX_CLIENTS:
            self._failed_logins.clear()
        recent_failures = [
            failed_at for failed_at in self._failed_logins[client] if failed_at > time.monotonic() - LOGIN_PAUSE
        ]
        self._failed_logins[client] = recent_failures
        return len(recent_failures) >= MAX_FAILED_LOGINS

    def _count_failures(self, client: str, send: Send) -> Send:
        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 400:
                self._failed_logins[client].append(time.monotonic())
            await send(message)

        return watched


class TooLarge(Exception):
    """A request body exceeds its limit; the message is for the client."""


class LimitedBody:
    """Limit the bytes received, whatever Content-Length says, and the number of an upload's parts."""

    def __init__(self, receive: Receive, max_bytes: int, headers: dict[bytes, str]):
        self._receive, self._max_bytes, self._size, self._parts, self._rest = receive, max_bytes, 0, 0, b""
        boundary = re.search(r'boundary="?([^";]{1,200})', headers.get(b"content-type", ""))
        self._mark = f"--{boundary[1]}".encode("latin-1") if boundary else None

    async def receive(self) -> Message:
        message = await self._receive()
        body = message.get("body", b"")
        self._size += len(body)
        if self._size > self._max_bytes:
            raise TooLarge(f"At most {self._max_bytes >> 20} MB are accepted at once.")
        if self._mark and body:
            text = self._rest + body
            self._parts += text.count(self._mark)
            self._rest = text[-len(self._mark) + 1 :]
            if self._parts > MAX_PARTS + 1:
                raise TooLarge(f"At most {MAX_PARTS} files are accepted at once.")
        return message


async def _drain(receive: Receive) -> None:
    """Read on for a while after a refusal: a client that is still sending would not see the response."""
    for _ in range(_DRAIN_MESSAGES):
        message = await receive()
        if not message.get("more_body"):
            return


def _is_upload(scope: Scope) -> bool:
    return scope["path"].rstrip("/").endswith("/upload")


def _length_refusal(headers: dict[bytes, str], max_bytes: int) -> tuple[int, str] | None:
    announced = headers.get(b"content-length", "0")
    if not announced.isdigit():
        return 400, "Invalid Content-Length."
    return (413, f"At most {max_bytes >> 20} MB are accepted at once.") if int(announced) > max_bytes else None


def _client(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else ""


def _folder_size(folder: Path) -> int:
    """Return the bytes in the folder; files deleted meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:
            continue
    return total
