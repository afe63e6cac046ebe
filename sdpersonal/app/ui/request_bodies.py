"""Limit what a client sends before Gradio sees it: bodies by their bytes, uploads also by their files and the disk."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import storage

MAX_UPLOAD = 1 << 30  # bytes of a file (a LoRA), of one request, and of all uploads on the disk
MAX_PARTS = 60  # files at once
MIN_FREE_DISK = 2 << 30  # bytes that must stay free on the disk
MAX_BODY = 2 << 20  # bytes of any other request
_DRAIN_MESSAGES = 256  # messages, 64 KB each at most


class RequestBodyMiddleware:
    """ASGI middleware. upload_dir: folder where uploads are stored."""

    def __init__(self, app: ASGIApp, upload_dir: Path):
        self.app, self.upload_dir = app, upload_dir

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._upload_refusal(headers) if _is_upload(scope) else _length_refusal(headers, MAX_BODY)
        if refusal:
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, send)
            return
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

    def _upload_refusal(self, headers: dict[bytes, str]) -> tuple[int, str] | None:
        if refusal := _length_refusal(headers, MAX_UPLOAD):
            return refusal
        if storage.free_bytes(self.upload_dir) < MIN_FREE_DISK:
            return 507, "The disk is nearly full."
        if _folder_size(self.upload_dir) > MAX_UPLOAD:
            return 507, "The space for uploads is full; older ones are deleted within an hour."
        return None


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


def _folder_size(folder: Path) -> int:
    """Return the bytes in the folder; files deleted meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:
            continue
    return total
