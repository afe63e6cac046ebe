"""Refuse requests before Gradio sees them: other hosts and sites, people who are not logged in.

`protect` puts this around the whole of Gradio's program; `login` stands behind it, `request_bodies` and
`client_sessions` stand inside.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ..routes.requests import DOCUMENT_POLICY, USER_KEY
from .auth import Access
from .login import LoginMiddleware, session_token

# Scripts and styles come from the page's folder only, so that text that became HTML by mistake could do nothing.
CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

MIN_COMPRESSED = 1000  # bytes of an answer in JSON that is worth compressing

# What everybody gets: the login page, and the page's own scripts and styles, which hold nothing of a user.
_PUBLIC_PATHS = re.compile(r"/|/login/?|/page/.+|/favicon\.(ico|svg)|/robots\.txt", re.S)
_USER_PATHS = re.compile(r"/logout|/app/.+|/gradio_api/(upload|upload_progress)", re.S)
# The HTTP API for programs; all but `call` is what Gradio's Python client asks for.
_API_PATHS = re.compile(
    r"/config|/gradio_api/(info|queue/(join|data)|cancel|heartbeat/[^/]+|file=.+|call/(v2/)?\w+(/\w+)?)", re.S
)
_STARTUP_PATH = "/gradio_api/startup-events"  # which Gradio itself asks for when it starts, and then nobody any more

UserOf = Callable[[Scope], str | None]


def protect(app: ASGIApp, access: Access, user_of: UserOf, api: bool = True) -> ASGIApp:
    """Wrap Gradio's program. user_of: function that returns the name of who is logged in, None if nobody is; api:
    whether the HTTP API is open."""
    if access.passwords:
        app = LoginMiddleware(app, access)
    app = SecurityMiddleware(app, bool(access.passwords), user_of, api)
    app = TrustedHostMiddleware(app, sorted(access.names), www_redirect=False)
    # uvicorn has types of its own for what Starlette types as mappings.
    app = ProxyHeadersMiddleware(app, list(access.proxies))  # type: ignore[assignment, arg-type]
    return SecurityHeadersMiddleware(app)


def logged_in_user(scope: Scope) -> str | None:
    """Return the name of the user who is logged in to Gradio; None if nobody is."""
    return scope["app"].tokens.get(session_token(scope))


class SecurityHeadersMiddleware:
    """Let no other site show, read or guess the type of an answer, nor get the cookies sent along."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=[*message.get("headers", ())])
                own_policy = headers.get("content-security-policy")
                headers.update(SECURITY_HEADERS)
                if own_policy == DOCUMENT_POLICY:
                    headers["content-security-policy"] = own_policy
                message = {**message, "headers": _same_site_cookies(headers.raw, scope["scheme"] == "https")}
            await send(message)

        await self.app(scope, receive, send_secured if scope["type"] == "http" else send)


class JsonCompressionMiddleware:
    """Compress what the page's routes answer in JSON, whole and long. Streams pass at once."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "gzip" not in Headers(scope=scope).get("accept-encoding", ""):
            await self.app(scope, receive, send)
            return
        start: Message | None = None

        async def send_compressed(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                headers = Headers(raw=message["headers"])
                if headers.get("content-type") == "application/json" and "content-encoding" not in headers:
                    start = message  # until the first part tells whether it is the whole body
                    return
            elif start is not None:
                head, start = start, None
                if not message.get("more_body") and len(message.get("body", b"")) >= MIN_COMPRESSED:
                    message = {**message, "body": gzip.compress(message["body"], 5)}
                    headers = MutableHeaders(raw=[*head["headers"]])
                    headers["content-encoding"], headers["vary"] = "gzip", "Accept-Encoding"
                    headers["content-length"] = str(len(message["body"]))
                    head = {**head, "headers": headers.raw}
                await send(head)
            await send(message)

        await self.app(scope, receive, send_compressed)


def _same_site_cookies(headers: list[tuple[bytes, bytes]], https: bool) -> list[tuple[bytes, bytes]]:
    """Return the headers with cookies that other sites' pages cannot use, and that never leave HTTPS once there."""
    changed = []
    for name, value in headers:
        if name.lower() == b"set-cookie":
            value = re.sub(rb";\s*samesite=[^;]*", b"", value, flags=re.I) + b"; SameSite=Lax"
            if https and b"; secure" not in value.lower():
                value += b"; Secure"
        changed.append((name, value))
    return changed


class SecurityMiddleware:
    """ASGI middleware that decides for each request whether it is answered at all. login: whether people log in; api:
    whether the HTTP API is open."""

    def __init__(self, app: ASGIApp, login: bool, user_of: UserOf, api: bool = True):
        self.app, self.login, self.user_of, self.api = app, login, user_of, api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if response := _site_refusal(scope) or self._path_refusal(scope):
            await response(scope, receive, send)
            return
        scope["headers"] = [header for header in scope["headers"] if not header[0].startswith(b"x-forwarded-")]
        if scope["path"] == "/config":
            scope["query_string"] = b""  # it names saved states and other pages, and there are none
        await self.app(scope, receive, send)

    def _path_refusal(self, scope: Scope) -> Response | None:
        path = scope["path"]
        user = self.user_of(scope) if self.login else ""
        if user is not None:
            scope[USER_KEY] = user
        if _PUBLIC_PATHS.fullmatch(path) or (path == _STARTUP_PATH and not scope["app"].startup_events_triggered):
            return None
        if user is None:
            return JSONResponse({"error": "Log in first.", "hint": "", "field": None}, 401)
        if _USER_PATHS.fullmatch(path):
            return None
        if _API_PATHS.fullmatch(path):
            return (
                None if self.api else PlainTextResponse("The HTTP API is off: the app was started with --no-api.", 404)
            )
        return PlainTextResponse("There is nothing here.", 404)


def _site_refusal(scope: Scope) -> Response | None:
    """Refuse what another site's page asks for; but a link to the page itself may stand anywhere."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    # Gradio itself trusts every page on this machine, whatever its port: they could read the images.
    origins = {*headers.getlist("origin")}
    if origins == {f"https://{host}"} and scope["scheme"] == "http":
        text = "The page came by HTTPS but this request did not: start the app with --proxy and the proxy's address."
        return PlainTextResponse(text, 403)
    followed_link = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET"
    from_elsewhere = headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not followed_link
    if from_elsewhere or origins - {f"{scope['scheme']}://{host}"}:
        return PlainTextResponse("Requests from other sites are refused.", 403)
    return None
