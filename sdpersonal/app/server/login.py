"""Let few attempts to log in through: by where they come from, and by the name that they are for."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict

import anyio
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .auth import Access

MAX_FAILED_LOGINS, LOGIN_PAUSE = 5, 30.0  # wrong passwords from one place, and the seconds until the next attempt
MAX_SHARED_FAILED_LOGINS = 50  # the same for a proxy that does not say where its clients are
MAX_LOGIN_BODY, LOGIN_SECONDS = 8192, 10.0  # bytes of a login form, and the seconds in which it must arrive
MAX_TOKENS = 50  # logins of one user that are valid at once, on different devices for instance
_MAX_PLACES = 10_000
_MAX_NAME = 64  # characters of a name or a place that are looked at; no user's name has so many

_Key = tuple[str, str | None]  # a place and a user's name, or all names


class LoginAttempts:
    """The attempts of the last `LOGIN_PAUSE` seconds that failed or are under way.

    A place is where attempts come from, see `place_of`. shared: the place stands for many people, so that they are told
    apart by the names that they try.
    """

    def __init__(self) -> None:
        self._times: OrderedDict[_Key, list[float]] = OrderedDict()

    def must_wait(self, place: str, name: str | None, shared: bool) -> bool:
        """Return whether there were too many attempts; name: None if it is not known yet."""
        limit = MAX_SHARED_FAILED_LOGINS if shared else MAX_FAILED_LOGINS
        if len(self._recent((place, None))) >= limit:
            return True
        return name is not None and len(self._recent((place, name))) >= MAX_FAILED_LOGINS

    def reserve(self, place: str, name: str, shared: bool) -> float | None:
        """Count an attempt before its password is tried, so that many at once are counted too.

        Returns:
            The attempt for `take_back`, or None if it must wait.
        """
        if self.must_wait(place, name, shared):
            return None
        now = time.monotonic()
        for key in ((place, None), (place, name)):
            self._times[key] = [*self._recent(key), now]
            self._times.move_to_end(key)
        while len(self._times) > 2 * _MAX_PLACES:
            self._times.popitem(last=False)
        return now

    def take_back(self, place: str, name: str, attempt: float) -> None:
        """Do not count an attempt that succeeded. Former ones stay: their password may be somebody else's."""
        for key in ((place, None), (place, name)):
            times = self._recent(key)
            if attempt in times:
                times.remove(attempt)
            self._times[key] = times

    def _recent(self, key: _Key) -> list[float]:
        return [attempt for attempt in self._times.get(key, ()) if attempt > time.monotonic() - LOGIN_PAUSE]


def place_of(address: str) -> str:
    """Return what one client can be told by: its IPv4 address, or the first half of its IPv6 address, whose other half
    everybody chooses freely.

    >>> place_of("2001:db8::1") == place_of("2001:db8::ffff:2")
    True
    >>> place_of("::ffff:10.0.0.9")
    '10.0.0.9'
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:_MAX_NAME]
    if parsed.version == 4:
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed.packed[:8] + bytes(8), 64)))


class LoginMiddleware:
    """ASGI middleware. The whole form is read before an attempt is counted and handed on, so that nobody can open many
    requests first and send all passwords then. Logging out ends the login of one device."""

    def __init__(self, app: ASGIApp, access: Access):
        self.app, self.access = app, access
        self.attempts = LoginAttempts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/logout":  # Gradio, which knows nobody then, ends no others
            scope["app"].tokens.pop(session_token(scope), None)
        if scope["type"] != "http" or scope["path"].rstrip("/") != "/login" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        address = scope["client"][0] if scope.get("client") else ""
        place, shared = place_of(address), self.access.is_proxy(address)
        if self.attempts.must_wait(place, None, shared):
            await _wait_response()(scope, receive, send)
            return
        try:
            with anyio.fail_after(LOGIN_SECONDS):
                body = await read_body(receive, MAX_LOGIN_BODY)
            name = await _form_name(scope, body)
        except (TimeoutError, ClientDisconnect, HTTPException, MultiPartException, BodyTooLong) as error:
            status = {TimeoutError: 408, BodyTooLong: 413}.get(type(error), 400)
            await PlainTextResponse("That is not a login.", status)(scope, receive, send)
            return
        attempt = self.attempts.reserve(place, name, shared)
        if attempt is None:
            await _wait_response()(scope, receive, send)
            return

        async def send_watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                self.attempts.take_back(place, name, attempt)
                _limit_tokens(scope, name)
            await send(message)

        await self.app(scope, replay(body, receive), send_watched)


def session_token(scope: Scope) -> str | None:
    """Return the token of Gradio's login that a request has in its cookies."""
    cookies, name = Request(scope).cookies, scope["app"].cookie_id
    return cookies.get(f"access-token-{name}") or cookies.get(f"access-token-unsecure-{name}")


def _wait_response() -> PlainTextResponse:
    text = f"Too many wrong passwords. Wait {LOGIN_PAUSE:.0f} seconds."
    return PlainTextResponse(text, 429, {"Retry-After": f"{LOGIN_PAUSE:.0f}"})


class BodyTooLong(Exception):
    """A body has more bytes than it may have."""


async def read_body(receive: Receive, max_bytes: int) -> bytes:
    """Read a request's whole body. Raises BodyTooLong, or ClientDisconnect if the rest never comes."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > max_bytes:
            raise BodyTooLong
    return bytes(body)


async def _form_name(scope: Scope, body: bytes) -> str:
    """Return the user name in a login form, as Gradio reads it. Raises HTTPException if it is no form."""
    async with Request(scope, replay(body)).form(max_files=0, max_fields=20) as form:
        return str(form.get("username", "")).strip()[:_MAX_NAME]


def replay(body: bytes, then: Receive | None = None) -> Receive:
    """Return a function that yields the body that was read, and then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        return await then() if then else {"type": "http.disconnect"}

    return receive


def _limit_tokens(scope: Scope, name: str) -> None:
    tokens = scope["app"].tokens
    for token in [token for token, user in tokens.items() if user == name][:-MAX_TOKENS]:
        del tokens[token]
