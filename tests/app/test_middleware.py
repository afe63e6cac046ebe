"""Who may come in, and what is refused at the door: the middleware around a plain program that answers everything."""

import re
from collections import Counter
from pathlib import Path

import anyio
import httpx
import pytest

from sdpersonal.app.routes.requests import DOCUMENT_POLICY, USER_KEY
from sdpersonal.app.server import login
from sdpersonal.app.server.auth import Access, configure_access
from sdpersonal.app.server.login import MAX_FAILED_LOGINS, MAX_SHARED_FAILED_LOGINS, MAX_TOKENS
from sdpersonal.app.server.middleware import (
    SECURITY_HEADERS,
    JsonCompressionMiddleware,
    logged_in_user,
    protect,
)
from sdpersonal.errors import UserError

PASSWORDS = {"ann": "correct horse", "bob": "battery staple"}
RIGHT = {"username": "ann", "password": PASSWORDS["ann"]}
WRONG = {"username": "ann", "password": "wrong"}
FORM = (b"content-type", b"application/x-www-form-urlencoded")


class Program:
    """Gradio, as far as a door sees it: a login that sets cookies as Gradio does, and "in" for all else."""

    def __init__(self):
        self.tokens, self.cookie_id, self.startup_events_triggered = {}, "id", True
        self.tries, self.scopes = 0, []

    async def __call__(self, scope, receive, send):
        body, more = b"", scope["type"] == "http"
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.scopes.append(scope)
        status, headers = 200, [(b"set-cookie", b"other=1")]
        if scope["path"].rstrip("/") == "/login":
            self.tries += 1
            status = 200 if b"correct" in body else 400
            if status == 200:
                token = f"token{self.tries}"
                self.tokens[token] = "ann"
                cookie = f"access-token-id={token}; HttpOnly; Path=/; SameSite=none; Secure".encode()
                unsecure = f"access-token-unsecure-id={token}; HttpOnly; Path=/; SameSite=lax".encode()
                headers = [(b"set-cookie", cookie), (b"set-cookie", unsecure)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"in"})


class Door:
    """The program behind its door, and how to knock."""

    def __init__(self, api=True, **access):
        access = Access(7860, hosts=("cellar.example",), **access)
        self.program = Program()
        self._protected = protect(self.program, access, logged_in_user, api)

    async def __call__(self, scope, receive, send):
        await self._protected(scope | {"app": self.program}, receive, send)

    def ask(self, method="GET", path="/", host="127.0.0.1:7860", address="10.0.0.9", **more):
        async def go():
            transport = httpx.ASGITransport(self, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await client.request(method, path, headers={"Host": host} | more.pop("headers", {}), **more)

        return anyio.run(go)

    def log_in(self, form=RIGHT, **more):
        return self.ask("POST", "/login", data=form, **more)


@pytest.fixture
def door():
    """Open to this machine."""
    return Door()


@pytest.fixture
def locked():
    """Open to ann and bob; 10.0.0.1 is its proxy."""
    return Door(passwords=PASSWORDS, proxies=("10.0.0.1",))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:7860", "cellar.example", "cellar.example:443"])
def test_configured_host_names_are_accepted(door, host):
    assert door.ask(host=host).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "cellar.example:x", "", "127.0.0.1:7860:1"])
def test_other_host_names_are_refused(door, host):
    assert door.ask(host=host).status_code == 400


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:7860", "http://127.0.0.1:1"])
def test_requests_from_other_origins_are_refused(door, origin):
    for method in ("GET", "POST", "OPTIONS"):
        assert door.ask(method, headers={"Origin": origin}).status_code == 403
    assert door.ask("POST", headers={"Origin": "http://127.0.0.1:7860"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/logout", "/config", "/app/state", "/gradio_api/heartbeat/x", "/gradio_api/file=x", "/robots.txt"]
)
def test_cross_site_links_open_only_the_start_page(door, path):
    link = {"Sec-Fetch-Mode": "navigate"}
    for site in ("cross-site", "same-site"):  # the same site is any port of this machine
        assert door.ask(path=path, headers=link | {"Sec-Fetch-Site": site}).status_code == 403
        assert door.ask(path="/", headers=link | {"Sec-Fetch-Site": site}).status_code == 200
        assert door.ask("POST", path="/", headers=link | {"Sec-Fetch-Site": site}).status_code == 403
        assert door.ask(path="/", headers={"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Site": site}).status_code == 403
    for site in ("same-origin", "none"):
        assert door.ask(path=path, headers=link | {"Sec-Fetch-Site": site}).status_code == 200


# --- who needs a login ------------------------------------------------------------------------------------------------

PUBLIC = ["/", "/page/js/main.js", "/page/v-0123456789ab/css/base.css", "/favicon.ico", "/favicon.svg", "/robots.txt"]
FOR_USERS = ["/logout", "/app/state", "/app/images/2026-11-28/1.png", "/app/x\n", "/gradio_api/upload"]
FOR_PROGRAMS = ["/config", "/gradio_api/info", "/gradio_api/queue/data", "/gradio_api/queue/join", "/gradio_api/cancel"]
FOR_PROGRAMS += ["/gradio_api/heartbeat/x", "/gradio_api/file=/x\n", "/gradio_api/call/x", "/gradio_api/call/v2/x/e1"]
CLOSED = ["/openapi.json", "/gradio_api/openapi.json", "/gradio_api/startup-events", "/gradio_api/token", "/x", "/docs"]
CLOSED += [f"/gradio_api/{name}" for name in ("component_server", "deep_link", "run/x", "reset", "stream/x", "runs")]
CLOSED += [
    "/gradio_api/proxy=http://x",
    "/static",
    "/gradio_api/call/x/y/z",
    "/gradio_api/heartbeat/x/y",
    "/app",
    "/app/",
]
CLOSED += ["//gradio_api/heartbeat/x", "//app/state", "/APP/state", "/GRADIO_API/heartbeat/x", "/monitoring/x", "/\n"]
CLOSED += [
    "/assets/x.js",
    "/svelte/x.js",
    "/static/img/logo.svg",
    "/theme.css",
    "/gradio_api/theme.css",
    "/manifest.json",
]


@pytest.mark.parametrize("path", PUBLIC + FOR_USERS + FOR_PROGRAMS + CLOSED)
def test_only_public_paths_are_open_without_a_login(door, locked, path):
    open_to_all, open_to_users = path in PUBLIC, path not in CLOSED
    asked = path.replace("\n", "%0A")
    assert locked.ask(path=asked).status_code == (200 if open_to_all else 401)
    assert locked.ask(path=asked, headers={"Cookie": "access-token-id=x"}).status_code != 404
    locked.log_in()
    cookie = {"Cookie": "access-token-unsecure-id=token1"}
    expected = 200 if open_to_users else 404
    assert locked.ask(path=asked, headers=cookie).status_code == expected
    assert door.ask(path=asked).status_code == expected


@pytest.mark.parametrize("path", FOR_PROGRAMS + FOR_USERS)
def test_no_api_closes_the_paths_of_the_http_api(path):
    answer = Door(api=False).ask(path=path.replace("\n", "%0A"))
    assert answer.status_code == (404 if path in FOR_PROGRAMS else 200)
    assert ("--no-api" in answer.text) == (path in FOR_PROGRAMS)


def test_the_logged_in_user_is_passed_to_the_app(door, locked):
    def user_of(asked):
        return asked.program.scopes[-1].get(USER_KEY)

    door.ask()
    assert user_of(door) == ""
    locked.ask()
    assert user_of(locked) is None
    locked.log_in()
    for path in ("/", "/app/state"):
        locked.ask(path=path, headers={"Cookie": "access-token-unsecure-id=token1"})
        assert user_of(locked) == "ann"


def test_the_startup_events_of_gradio_need_no_login(locked):
    locked.program.startup_events_triggered = False
    assert locked.ask(path="/gradio_api/startup-events").status_code == 200


def test_a_websocket_is_closed(locked):
    sent = []

    async def go():
        scope = {"type": "websocket", "path": "/x", "scheme": "ws", "headers": [(b"host", b"127.0.0.1")]}
        await locked(scope | {"client": ("10.0.0.9", 1)}, None, lambda message: _append(sent, message))

    anyio.run(go)
    assert [message["type"] for message in sent] == ["websocket.close"] and not locked.program.scopes


async def _append(messages, message):
    messages.append(message)


def test_every_response_has_the_security_headers(locked):
    answers = [
        locked.ask(),
        locked.ask(path="/config"),
        locked.log_in({"username": "x" * 9000}),
        locked.ask(host="evil"),
    ]
    answers += [locked.ask("OPTIONS", headers={"Origin": "null"}), *(locked.log_in(WRONG) for _ in range(6))]
    assert {answer.status_code for answer in answers} == {200, 400, 401, 403, 413, 429}
    for answer in answers:
        assert {name: answer.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS


def test_the_content_security_policy_allows_only_own_sources(locked):
    policy = dict(part.split(" ", 1) for part in locked.ask().headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["object-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert not any(word in " ".join(policy.values()) for word in ("unsafe", "*", "http"))


@pytest.mark.parametrize("own, kept", [(DOCUMENT_POLICY, True), ("default-src *", False), ("", False)])
def test_only_the_document_policy_replaces_the_default_policy(own, kept):
    async def program(scope, receive, send):
        headers = [(b"content-security-policy", own.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"<html>"})

    protected = protect(program, Access(7860), logged_in_user)

    async def go():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(protected), base_url="http://127.0.0.1") as client:
            return await client.get("/app/x")

    policies = anyio.run(go).headers.get_list("content-security-policy")
    assert policies == [own if kept else SECURITY_HEADERS["Content-Security-Policy"]]
    assert "sandbox" in DOCUMENT_POLICY and "allow-same-origin" not in DOCUMENT_POLICY


def test_long_json_is_compressed_and_streams_are_not_buffered():
    sent = []

    def program(kind, *parts):
        async def answer(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
            for number, part in enumerate(parts, 1):
                sent.append("part")
                await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})

        return JsonCompressionMiddleware(answer)

    async def ask(program, **headers):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(program), base_url="http://x") as client:
            return await client.get("/app/x", headers=headers)

    async def sending(message):
        sent.append(message["type"])

    long = b"[" + b"1," * 5000 + b"1]"
    for headers, zipped in [({"Accept-Encoding": "gzip"}, True), ({"Accept-Encoding": "identity"}, False)]:
        answer = anyio.run(lambda headers=headers: ask(program(b"application/json", long), **headers))
        assert answer.content == long and ("content-encoding" in answer.headers) == zipped
    for parts in ([b"[1]"], [long, b" "]):
        answered = program(b"application/json", *parts)
        assert "content-encoding" not in anyio.run(ask, answered).headers
    sent.clear()
    scope = {"type": "http", "headers": [(b"accept-encoding", b"gzip")]}
    anyio.run(lambda: program(b"text/event-stream", b"a", b"b")(scope, None, sending))
    assert sent == ["http.response.start", "part", "http.response.body", "part", "http.response.body"]


# --- guessed passwords ------------------------------------------------------------------------------------------------


def test_repeated_wrong_passwords_are_rate_limited(locked):
    tried = [locked.log_in(WRONG).status_code for _ in range(200)]
    assert tried == [400] * MAX_FAILED_LOGINS + [429] * (200 - MAX_FAILED_LOGINS)
    assert locked.ask("POST", "/login/", data=RIGHT).status_code == 429
    assert locked.log_in(RIGHT | {"username": "bob"}).status_code == 429  # another name from the same place
    assert locked.log_in(address="10.0.0.10").status_code == 200  # not everybody waits
    assert locked.ask().status_code == 200


def at_once(door, forms, address="10.0.0.9"):
    """The statuses of logins whose heads are all sent before the first body."""
    statuses, bodies_sent = [], anyio.Event()

    async def one(form):
        async def receive():
            await bodies_sent.wait()
            return {"type": "http.request", "body": httpx.Request("POST", "http://x", data=form).content}

        async def send(message):
            await anyio.sleep(0)
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {"type": "http", "method": "POST", "path": "/login", "scheme": "http", "query_string": b""}
        headers = [(b"host", b"127.0.0.1:7860"), FORM]
        await door(scope | {"headers": headers, "client": (address, 1)}, receive, send)

    async def go():
        async with anyio.create_task_group() as group:
            for form in forms:
                group.start_soon(one, form)
            await anyio.wait_all_tasks_blocked()
            bodies_sent.set()

    anyio.run(go)
    return Counter(statuses)


@pytest.mark.parametrize("names", [["ann"], ["ann", "bob", "eve"]])
def test_concurrent_password_guesses_are_rate_limited(locked, names):
    guesses = [{"username": names[i % len(names)], "password": f"guess {i}"} for i in range(299)]
    assert at_once(locked, [*guesses, RIGHT]) == {400: MAX_FAILED_LOGINS, 429: 300 - MAX_FAILED_LOGINS}
    assert locked.program.tries == MAX_FAILED_LOGINS


def test_successful_logins_do_not_change_the_count_of_failed_logins(locked):
    assert [locked.log_in().status_code for _ in range(20)] == [200] * 20
    assert [locked.log_in(WRONG).status_code for _ in range(4)] == [400] * 4
    assert locked.log_in().status_code == 200
    assert [locked.log_in(WRONG).status_code for _ in range(2)] == [400, 429]


def test_the_login_pause_expires(locked, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(login.time, "monotonic", lambda: now[0])
    assert [locked.log_in(WRONG).status_code for _ in range(6)][-1] == 429
    now[0] += login.LOGIN_PAUSE + 1
    assert locked.log_in().status_code == 200


def test_an_ipv6_network_shares_the_limit_of_failed_logins(locked):
    tried = [locked.log_in(WRONG, address=f"2001:db8::{i:x}").status_code for i in range(8)]
    assert tried == [400] * 5 + [429] * 3
    assert locked.log_in(address="2001:db8:0:1::1").status_code == 200
    assert locked.log_in(address="::ffff:10.0.0.9").status_code == 200
    assert [locked.log_in(WRONG, address="::ffff:10.0.0.9").status_code for i in range(5)] == [400] * 5
    assert locked.log_in(address="10.0.0.9").status_code == 429


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.9"])
def test_forwarded_headers_are_ignored_unless_the_proxy_sends_them(locked, address):
    tried = [
        locked.log_in(WRONG, address=address, headers={"X-Forwarded-For": f"10.1.2.{i}"}).status_code for i in range(8)
    ]
    assert tried == [400] * 5 + [429] * 3
    answer = locked.ask(address=address, headers={"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"})
    assert answer.status_code == 200
    scope = locked.program.scopes[-1]
    assert scope["scheme"] == "http" and not any(b"forwarded" in name for name, _ in scope["headers"])


def test_forwarded_headers_of_the_proxy_are_used(locked):
    def by_proxy(form, client):
        return locked.log_in(form, address="10.0.0.1", headers={"X-Forwarded-For": client}).status_code

    assert [by_proxy(WRONG, "10.9.9.9") for _ in range(6)] == [400] * 5 + [429]
    assert by_proxy(RIGHT, "9.9.9.9, 10.9.9.9") == 429  # the client's own word before the proxy's
    assert by_proxy(RIGHT, "10.9.9.8") == 200
    https = {"X-Forwarded-Proto": "https", "Origin": "https://cellar.example"}
    assert locked.log_in(address="10.0.0.1", host="cellar.example", headers=https).status_code == 200
    refused = locked.log_in(host="cellar.example", headers=https)
    assert refused.status_code == 403 and "--proxy" in refused.text


def test_logins_are_limited_by_username_if_the_proxy_sends_no_address(locked):
    tried = [locked.log_in(WRONG, address="10.0.0.1").status_code for _ in range(6)]
    assert tried == [400] * 5 + [429]
    assert locked.log_in(RIGHT | {"username": "bob"}, address="10.0.0.1").status_code == 200
    guesses = [{"username": f"user{i}", "password": "x"} for i in range(200)]
    assert at_once(locked, guesses, address="10.0.0.1")[400] <= MAX_SHARED_FAILED_LOGINS


@pytest.mark.parametrize("body", [b"", b"%", b"--b\r\n", b"\xff" * 50, b"a=" * 1000, b"&" * 4000])
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "x", "", "é"])
def test_malformed_login_forms_are_refused(locked, body, kind):
    headers = {"Content-Type": kind.encode()}
    assert locked.ask("POST", "/login", content=body, headers=headers).status_code == 400


def test_slow_or_long_login_forms_are_refused(locked, monkeypatch):
    monkeypatch.setattr(login, "LOGIN_SECONDS", 0.05)

    async def slowly():
        yield b"username=ann&"
        await anyio.sleep(5)

    assert locked.ask("POST", "/login", content=slowly(), headers={"Content-Type": FORM[1].decode()}).status_code == 408
    assert locked.log_in({"username": "x" * 9000}).status_code == 413
    assert locked.program.tries == 0


def test_login_cookies_are_limited_to_this_site(locked):
    def cookies(**more):
        return locked.log_in(**more).headers.get_list("set-cookie")

    plain = cookies()
    assert len(plain) == 2 and all(re.search("HttpOnly.*SameSite=Lax$", cookie) for cookie in plain)
    https = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "10.0.0.77"}
    secure = cookies(address="10.0.0.1", headers=https)
    assert all("SameSite=Lax" in cookie and cookie.count("Secure") == 1 for cookie in secure)
    assert not any("none" in cookie.lower() for cookie in [*plain, *secure])


@pytest.mark.parametrize("cookie", ["access-token-id", "access-token-unsecure-id"])
def test_logging_out_ends_only_the_login_of_that_device(locked, cookie):
    for _ in range(2):
        locked.log_in()
    first, second = ({"Cookie": f"{cookie}={token}"} for token in locked.program.tokens)
    assert locked.ask(path="/logout", headers=first).status_code == 200
    assert locked.ask(path="/app/state", headers=first).status_code == 401
    assert locked.ask(path="/app/state", headers=second).status_code == 200
    assert locked.ask(path="/logout").status_code == 401 and len(locked.program.tokens) == 1


def test_the_number_of_login_tokens_is_limited(locked):
    for _ in range(MAX_TOKENS + 20):
        assert locked.log_in().status_code == 200
    assert MAX_TOKENS <= len(locked.program.tokens) <= MAX_TOKENS + 1
    assert f"token{MAX_TOKENS + 20}" in locked.program.tokens


# --- access ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def passwords(tmp_path):
    path = tmp_path / "passwords"

    def write(text, mode=0o600):
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


def test_the_app_listens_only_on_localhost_by_default():
    access = configure_access(7860, False, (), None)
    assert access.address == "127.0.0.1" and access.names == {"127.0.0.1", "localhost"} and access.check is None


def test_listening_on_the_network_needs_passwords(passwords):
    with pytest.raises(UserError, match="--password-file"):
        configure_access(7860, True, (), None)
    access = configure_access(
        7860, True, ("cellar.example",), passwords("# who\nann:correct horse\n\nbob:battery: staple\n")
    )
    assert access.address == "0.0.0.0" and {"cellar.example", "127.0.0.1"} <= access.names
    assert access.check("ann", "correct horse") and access.check("bob", "battery: staple")
    for name, password in [("ann", "battery: staple"), ("ann", ""), ("eve", ""), ("", ""), ("bob", "battery")]:
        assert not access.check(name, password)


def test_the_repr_of_access_contains_no_password():
    assert "secret" not in repr(Access(1, passwords={"ann": "secret-word"}))


BAD_FILES = ["", "ann", "ann:short", "../ann:long enough", "Ann:long enough", "# ann:long enough", "ann:        "]
BAD_FILES += [
    "ann:   short    ",
    "ann:\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd",
    "ann:long\0enough",
    ":long enough",
]
BAD_FILES += ["ann:long enough\nbob:long enough\nann:another one"]


@pytest.mark.parametrize("text", BAD_FILES)
def test_an_invalid_password_file_is_refused_with_a_message(passwords, text, monkeypatch):
    path = passwords(text)
    monkeypatch.chdir(path.parent)  # messages shorten long paths
    with pytest.raises(UserError) as refused:
        configure_access(7860, True, (), Path(path.name))
    assert "passwords" in refused.value.message


def test_a_password_file_must_be_utf_8(passwords, monkeypatch):
    monkeypatch.chdir(passwords("").parent)  # messages shorten long paths
    path = Path("passwords")
    path.write_bytes("# who\nann:pässwörter\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"Line 2 of .*passwords is not UTF-8"):
        configure_access(7860, True, (), path)
    path.write_bytes("\ufeffann:pässwörter\r\nbob:two  lines\r\n".encode())
    access = configure_access(7860, True, (), path)
    assert access.check("ann", "pässwörter") and access.check("bob", "two  lines")
    assert not access.check("ann", "p\ufffdssw\ufffdrter") and not access.check("ann", "p\ud800sswörter")


@pytest.mark.parametrize(
    "proxy", ["studio.example", "10.0.0", "10.0.0.1/8", "0.0.0.0/0", "::/0", "", "*", "10.0.0.1,x"]
)
def test_an_invalid_proxy_address_is_refused(passwords, proxy):
    with pytest.raises(UserError, match="--proxy"):
        configure_access(7860, False, (), passwords("ann:long enough"), (proxy,))


def test_a_proxy_needs_passwords(passwords):
    with pytest.raises(UserError, match="--password-file"):
        configure_access(7860, False, (), None, ("127.0.0.1",))
    access = configure_access(7860, False, (), passwords("ann:long enough"), ("127.0.0.1", "172.17.0.0/16", "::1"))
    assert [access.is_proxy(address) for address in ("127.0.0.1", "172.17.3.4", "::1")] == [True] * 3
    assert not any(access.is_proxy(address) for address in ("127.0.0.2", "172.18.0.1", "", "x", "::ffff:7f00:2"))


def test_a_password_file_that_others_can_read_is_refused(passwords):
    with pytest.raises(UserError, match="chmod 600"):
        configure_access(7860, True, (), passwords("ann:long enough", 0o644))
    with pytest.raises(UserError):
        configure_access(7860, True, (), passwords("x").with_name("nothing"))
