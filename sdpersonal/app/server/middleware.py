"""Refuse requests before Gradio sees them: other hosts and sites, people who are not logged in.

`protect` puts this around the whole of Gradio's program; `login` stands behind it, `request_bodies` and `page_sessions`
stand inside.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ..routes.requests import USER_KEY
from .auth import Access
from .login import LoginMiddleware


SECURITY_HEADERS = {
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

# What the login page consists of. Any other path needs a login, and those that the page never asks for are closed.
_PUBLIC_PATHS = re.compile(r"/|/login/?|/page/.+|/favicon\.ico|/robots\.txt", re.S)
_USER_PATHS = re.compile(
    r"/logout|/app/.+|/gradio_api/(app_id|info/?|queue/(join|data|status)|cancel|reset/?|heartbeat/[^/]+"
    r"|upload|upload_progress|file=.+)",
    re.S,
)
_STARTUP_PATH = "/gradio_api/startup-events"  # which Gradio itself asks for when it starts, and then nobody any more

UserOf = Callable[[Scope], str | None]


def protect(app: ASGIApp, access: Access, user_of: UserOf) -> ASGIApp:
    """Wrap Gradio's program. user_of: function that returns the name of who is logged in, None if nobody is."""
    if access.passwords:
        app = LoginMiddleware(app, access)
    app = SecurityMiddleware(app, bool(access.passwords), user_of)
    app = TrustedHostMiddleware(app, sorted(access.names), www_redirect=False)
    # uvicorn has types of its own for what Starlette types as mappings.
    app = ProxyHeadersMiddleware(app, list(access.proxies))  # type: ignore[assignment, arg-type]
    return SecurityHeadersMiddleware(app)


def logged_in_user(scope: Scope) -> str | None:
    """Return the name of the user who is logged in to Gradio; None if nobody is."""
    app, cookies = scope["app"], Request(scope).cookies
    token = cookies.get(f"access-token-{app.cookie_id}") or cookies.get(f"access-token-unsecure-{app.cookie_id}")
    return app.tokens.get(token)


class SecurityHeadersMiddleware:
    """Let no other site show, read or guess the type of an answer, nor get the cookies sent along."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=[*message.get("headers", ())])
                headers.update(SECURITY_HEADERS)
                message = {**message, "headers": _same_site_cookies(headers.raw, scope["scheme"] == "https")}
            await send(message)

        await self.app(scope, receive, send_secured if scope["type"] == "http" else send)


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
    """ASGI middleware that decides for each request whether Gradio may answer it. login: whether people log in."""

    def __init__(self, app: ASGIApp, login: bool, user_of: UserOf):
        self.app, self.login, self.user_of = app, login, user_of

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
        if scope["path"] == "/":
            scope["query_string"] = b""  # it names saved states and other pages, and there are none
        await self.app(scope, receive, send)

    def _path_refusal(self, scope: Scope) -> Response | None:
        path = scope["path"]
        if _PUBLIC_PATHS.fullmatch(path) or (path == _STARTUP_PATH and not scope["app"].startup_events_triggered):
            return None
        user = self.user_of(scope) if self.login else ""
        if user is None:
            return JSONResponse({"detail": {"error": "Log in first.", "auth_message": None}}, 401)
        scope[USER_KEY] = user
        return None if _USER_PATHS.fullmatch(path) else PlainTextResponse("The API is disabled; use the page.", 404)


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
