"""Who may come in, and what is refused at the access: the guard around a plain program that answers everything."""

import anyio
import httpx
import pytest
from starlette.middleware.trustedhost import TrustedHostMiddleware

from sdpersonal.app.ui.auth import Access, configure_access
from sdpersonal.app.ui.middleware import MAX_FAILED_LOGINS, SecurityMiddleware
from sdpersonal.errors import UserError

HOSTS = frozenset({"127.0.0.1", "cellar.example"})


async def answering(scope, receive, send):
    """Takes the whole body; a login succeeds with one password."""
    body = b""
    while (message := await receive()).get("more_body") or message.get("body"):
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    status = 400 if scope["path"].startswith("/login") and body != b"right" else 200
    headers = [(b"x-seen", b",".join(name for name, _ in scope["headers"]))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"in"})


@pytest.fixture
def ask():
    guard = TrustedHostMiddleware(SecurityMiddleware(answering), sorted(HOSTS), www_redirect=False)

    def asked(method="GET", path="/", host="127.0.0.1:7860", address="10.0.0.9", **more):
        async def go():
            transport = httpx.ASGITransport(guard, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await client.request(method, path, headers={"Host": host} | more.pop("headers", {}), **more)

        return anyio.run(go)

    return asked


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:7860", "cellar.example", "cellar.example:443"])
def test_its_own_names_are_answered(ask, host):
    assert ask(host=host).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "cellar.example:x", "", "127.0.0.1:7860:1"])
def test_other_names_are_not(ask, host):
    assert ask(host=host).status_code == 400


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:7860", "http://127.0.0.1:1"])
def test_another_sites_page_is_refused_whatever_it_asks(ask, origin):
    for method in ("GET", "POST", "OPTIONS"):
        assert ask(method, headers={"Origin": origin}).status_code == 403
    assert ask("POST", headers={"Origin": "http://127.0.0.1:7860"}).status_code == 200


def test_nobody_says_for_the_proxy_where_it_is(ask):
    answer = ask(headers={"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"})
    assert answer.status_code == 200 and "forwarded" not in answer.headers["x-seen"]


def test_passwords_cannot_be_guessed_fast(ask):
    tried = [ask("POST", "/login", content=b"wrong").status_code for _ in range(200)]
    assert tried == [400] * MAX_FAILED_LOGINS + [429] * (200 - MAX_FAILED_LOGINS)
    assert ask("POST", "/login/", content=b"right").status_code == 429
    assert ask("POST", "/login", content=b"right", address="10.0.0.10").status_code == 200  # not everybody waits
    assert ask().status_code == 200


# --- access ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def passwords(tmp_path):
    path = tmp_path / "passwords"

    def write(text, mode=0o600):
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


def test_alone_it_is_for_this_machine_only():
    access = configure_access(7860, False, (), None)
    assert access.address == "127.0.0.1" and access.names == {"127.0.0.1", "localhost"} and access.check is None


def test_to_listen_needs_passwords(passwords):
    with pytest.raises(UserError, match="--password-file"):
        configure_access(7860, True, (), None)
    access = configure_access(
        7860, True, ("cellar.example",), passwords("# who\nann:correct horse\n\nbob:battery: staple\n")
    )
    assert access.address == "0.0.0.0" and {"cellar.example", "127.0.0.1"} <= access.names
    assert access.check("ann", "correct horse") and access.check("bob", "battery: staple")
    for name, password in [("ann", "battery: staple"), ("ann", ""), ("eve", ""), ("", ""), ("bob", "battery")]:
        assert not access.check(name, password)


def test_no_password_is_in_what_is_printed_of_a_door():
    assert "secret" not in repr(Access(1, passwords={"ann": "secret-word"}))


@pytest.mark.parametrize("text", ["", "ann", "ann:short", "../ann:long enough", "Ann:long enough", "# ann:long enough"])
def test_a_bad_file_of_passwords_is_told(passwords, text):
    with pytest.raises(UserError):
        configure_access(7860, True, (), passwords(text))


def test_a_file_that_others_can_read_is_refused(passwords):
    with pytest.raises(UserError, match="chmod 600"):
        configure_access(7860, True, (), passwords("ann:long enough", 0o644))
    with pytest.raises(UserError):
        configure_access(7860, True, (), passwords("x").with_name("nothing"))
