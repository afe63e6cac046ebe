"""Refuse requests before Gradio sees them: other sites' pages, guessed passwords.

Starlette's `TrustedHostMiddleware` stands before it and refuses other host names; `request_bodies` stands behind it.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_FAILED_LOGINS, LOGIN_PAUSE = 5, 30.0  # wrong passwords from one client, and the seconds until the next attempt
_MAX_CLIENTS = 10_000
_UNQUEUED_ROUTES = re.compile(r"/gradio_api/(run|api|call)\b")


class SecurityMiddleware:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp):
        self.app = app
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
        await self.app(scope, receive, send)

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


def _client(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else ""
