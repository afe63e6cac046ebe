"""The page's files: compressed, kept by browsers for good at addresses with a version, and nothing but themselves."""

import gzip
import re
from types import SimpleNamespace

import anyio
import brotli
import fastapi
import httpx
import pytest

from sdpersonal.app.routes import page
from sdpersonal.app.routes.page import PAGE_FOLDER, PageFiles
from sdpersonal.app.routes.requests import USER_KEY


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "page"
    (folder / "js").mkdir(parents=True)
    (folder / "index.html").write_text('<script src="/page/js/main.js"></script>' + "<p>text</p>" * 100)
    (folder / "login.html").write_text("<h1>Log in</h1>")
    (folder / "js" / "main.js").write_text("import './dom.js';\n" * 100)
    (folder / "favicon.svg").write_text("<svg/>")
    (tmp_path / "secret.txt").write_text("CANARY")
    return folder


@pytest.fixture
def ask(folder):
    server = fastapi.FastAPI()
    server.include_router(page.router(SimpleNamespace(), PageFiles(folder)))

    def asked(path="/", user="", method="GET", **headers):
        async def program(scope, receive, send):
            await server(scope if user is None else {**scope, USER_KEY: user}, receive, send)

        async def go():
            headers.setdefault("accept-encoding", "identity")
            async with httpx.AsyncClient(transport=httpx.ASGITransport(program), base_url="http://x") as client:
                return await client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})

        return anyio.run(go)

    return asked


def test_page_files_have_versioned_addresses_and_are_cached(ask, folder):
    html = ask("/")
    assert html.headers["cache-control"] == "no-cache" and html.headers["content-type"].startswith("text/html")
    address = re.search('src="([^"]*)"', html.text)[1]
    script = ask(address)
    assert re.fullmatch("/page/v-[0-9a-f]{12}/js/main.js", address) and "dom.js" in script.text
    assert "immutable" in script.headers["cache-control"] and script.headers["content-type"].startswith("text/java")
    (folder / "js" / "main.js").write_text("changed")
    assert ask(address).headers["cache-control"] == "no-cache"  # an old page is not given the new one for good
    assert re.search('src="([^"]*)"', ask("/").text)[1] != address and ask("/page/js/main.js").text == "changed"


def test_an_unchanged_page_is_not_sent_again(ask, folder):
    first = ask("/")
    again = ask("/", if_none_match=f'"x", W/{first.headers["etag"]}')
    assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == first.headers["etag"]
    (folder / "index.html").write_text("new")
    assert ask("/", if_none_match=first.headers["etag"]).text == "new"
    assert ask("/", if_none_match=first.headers["etag"], user=None).text == "<h1>Log in</h1>"


@pytest.mark.parametrize(
    "accepted, encoding",
    [("br, gzip", "br"), ("gzip;q=0.8, deflate", "gzip"), ("identity", None), ("", None), ("broccoli", None)],
)
def test_files_are_compressed_as_accept_encoding_allows(folder, accepted, encoding):
    files = PageFiles(folder)
    request = SimpleNamespace(headers={"accept-encoding": accepted})
    answer = page._response(request, files, "js/main.js", "no-cache")
    assert answer.headers.get("content-encoding") == encoding and answer.headers["vary"] == "Accept-Encoding"
    unpack = {"br": brotli.decompress, "gzip": gzip.decompress, None: bytes}[encoding]
    assert unpack(answer.body) == (folder / "js" / "main.js").read_bytes()
    assert (len(answer.body) < 200) == (encoding is not None)


@pytest.mark.parametrize("user, text", [(None, "Log in"), ("", "text"), ("ann", "text")])
def test_users_without_a_login_get_the_login_page(ask, user, text):
    assert text in ask("/", user=user).text
    head = ask("/", user=user, method="HEAD")
    assert head.status_code == 200 and head.content == b""


STRANGE = ["x", "", "js", "js/", "../secret.txt", "%2e%2e/secret.txt", "js/%2e%2e/index.html", "/etc/passwd", "js%00"]
STRANGE += ["v-000000000000/../secret.txt", "v-000000000000//etc/passwd", "js\\main.js", "JS/main.js"]


@pytest.mark.parametrize("name", STRANGE)
def test_unknown_and_unsafe_paths_are_not_served(ask, name):
    answer = ask(f"/page/{name}")
    assert answer.status_code in (400, 404) and "CANARY" not in answer.text


def test_favicon_and_robots_txt_are_served(ask):
    assert ask("/favicon.ico").headers["content-type"] == ask("/favicon.svg").headers["content-type"] == "image/svg+xml"
    assert ask("/robots.txt").text == "User-agent: *\nDisallow: /\n"


def test_every_file_that_the_html_references_exists():
    files = PageFiles()
    for name in ("index.html", "login.html"):
        html = (PAGE_FOLDER / name).read_text()
        for address in re.findall(r'(?:href|src)="/page/([^"]*)"', html):
            assert files.file(address) is not None, address
        assert not re.search(
            r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|https?://", html
        )  # the policy refuses them
