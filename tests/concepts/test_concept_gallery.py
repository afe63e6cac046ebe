"""The gallery: in a real browser, with 500 concepts of which some are hostile, from a file, with the network closed."""

import base64
import dataclasses
import getpass
import io
import json
import os
import re
import socket
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from sdpersonal.cli.main import main
from sdpersonal.concepts import gallery as gallery_module
from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.concepts.gallery import write_gallery
from sdpersonal.concepts.library import Library
from sdpersonal.concepts.thumbnail import make_thumbnail
from sdpersonal.prompts import Token
from support.browser import browser, missing
from support.samples import card, concept, embedding, thumbnail

HOSTILE = [
    "<script>window.PWNED = 1</script>",
    "<img src=x onerror='window.PWNED = 1'>",
    '"><svg onload=window.PWNED=1>',
    "' onmouseover='window.PWNED=1",
    "{{ 7 * 7 }} {% raw %}",
    "</script><script>window.PWNED=1</script>",
    "</textarea><iframe src=javascript:window.PWNED=1>",
    "![x](http://tracker.example/p.png)",
    "&lt;b&gt; &amp; 日本語 \u202e evil",
    "x" * 100,
]


def written(library, actual) -> None:
    """Put there by hand, which is quicker than `add`."""
    path = library.folder / actual.token.owner / f"{actual.token.name}-v{actual.token.version}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(concept_to_bytes(actual))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """500 concepts of five owners, ten of them hostile."""
    library = Library(tmp_path_factory.mktemp("full") / "concepts")
    for n in range(500):
        title = HOSTILE[n] if n < len(HOSTILE) else f"Thing number {n}"
        facts = {"title": title[:100], "kind": ("object", "style", "person")[n % 3], "license": "CC-BY-4.0"}
        facts |= {"description": HOSTILE[n % 10], "author": HOSTILE[(n + 1) % 10], "class_noun": f"noun{n % 7}"}
        facts |= {"prompts": (HOSTILE[(n + 2) % 10],), "scores": {"likeness": n / 500}}
        picture = Image.linear_gradient("L").rotate(n).convert("RGB").resize((96, 96))
        token = Token(f"owner{n % 5}", f"thing-{n}", 1)
        written(
            library, dataclasses.replace(embedding(str(token)), card=card(**facts), thumbnail=make_thumbnail(picture))
        )
    return library


@pytest.fixture(scope="module")
def page(full, tmp_path_factory):
    path, shown = write_gallery(full.entries(), tmp_path_factory.mktemp("page"), "All <b>things</b>")
    assert shown == 500
    return path


@pytest.fixture
def library(tmp_path):
    library = Library(tmp_path / "concepts")
    library.add(concept(card=card(author="Ann", consent="yes", kind="person", scores={"likeness": 0.5})))
    library.add(concept(seed=1))
    library.add(embedding("<you/ink>", 3))
    return library


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]


def test_card_text_is_never_rendered_as_markup(page):
    read = Page(page.read_text())
    known = {"html", "meta", "title", "style", "header", "h1", "div", "input", "select", "option", "output", "main"}
    known |= {"article", "img", "h2", "button", "code", "p", "span", "details", "summary", "dl", "dt", "dd", "script"}
    assert set(read.tags) <= known and read.tags.count("script") == 1 and read.tags.count("article") == 500
    assert not [item for item in read.attributes if item[1].startswith("on") or item[1] in ("href", "action", "style")]
    assert all(value.startswith("data:image/webp;base64,") for _, name, value in read.attributes if name == "src")


def test_the_gallery_shows_the_newest_versions_and_no_private_data(library, tmp_path, capsys):
    path = tmp_path / "there" / "deep"
    assert main(["concepts", "gallery", "--to", str(path), "--library", str(library.folder)]) == 0
    assert capsys.readouterr().out.startswith("2 concepts, 0.0 MB: ")
    text = (path / "index.html").read_text()
    assert text.count("<article") == 2 and "2 (2 here)" in text and concept(seed=1).identity[:16] in text
    secrets = [str(Path.home()), os.environ["HOME"], str(tmp_path), os.getcwd(), "IMG_"]
    secrets += [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4]
    assert not [secret for secret in secrets if secret in text]
    assert [item.name for item in path.iterdir()] == ["index.html"]
    assert main(["concepts", "gallery", "--to", str(path), "--library", str(library.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["concepts"] == 2
    assert (path / "index.html").read_text() == text  # the same library is the same page


def test_damaged_concepts_and_thumbnails_are_left_out(library, tmp_path):
    written(library, dataclasses.replace(embedding("<me/odd-v1>"), thumbnail=b"\x89PNG\r\n\x1a\n broken"))
    broken = library.find(Token.parse("<you/ink>")).path
    broken.write_bytes(broken.read_bytes()[:-5] + b"")
    path, shown = write_gallery(library.entries(), tmp_path / "page")
    assert shown == 2 and "broken" not in path.read_text() and path.read_text().count("<img") == 1


@pytest.mark.parametrize(
    ("to", "folder", "message"),
    [
        ("page", "none", "No concepts in"),
        ("file", "concepts", "is a file, not a folder"),
        ("/proc/x", "concepts", "/proc/x"),
    ],
)
def test_invalid_gallery_arguments_are_refused_with_a_message(library, tmp_path, capsys, to, folder, message):
    (tmp_path / "file").write_text("")
    code = main(["concepts", "gallery", "--to", str(tmp_path / to), "--library", str(tmp_path / folder)])
    err = capsys.readouterr().err
    assert code == 2 and message in err and "Traceback" not in err


def test_thumbnails_are_encoded_again(library, tmp_path):
    path, _ = write_gallery(library.entries(), tmp_path / "page")
    data = base64.b64decode(re.search(r"data:image/webp;base64,([^\"]+)", path.read_text())[1])
    with Image.open(io.BytesIO(data)) as picture:
        assert max(picture.size) <= 256 and not picture.getexif()
    assert data != thumbnail()


def test_large_galleries_have_smaller_thumbnails(library, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery_module, "_MANY", 1)
    messages = []
    path, shown = write_gallery(library.entries(), tmp_path / "page", progress=lambda *done: messages.append(done))
    assert messages == [(1, 2), (2, 2)] and shown == 2
    match = re.findall(r"data:image/webp;base64,([^\"]+)", path.read_text())
    for data in match:
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert max(picture.size) == 176
    assert match


# --- in a browser -----------------------------------------------------------------------------------------------------

SHOWN = "[...document.querySelectorAll('article')].filter(a => !a.hidden).length"


@pytest.fixture(scope="module")
def window(page, tmp_path_factory):
    if missing():
        pytest.skip(missing())
    with browser(tmp_path_factory.mktemp("profile")) as window:
        window.open(page.as_uri())
        yield window


@pytest.fixture
def fresh(window, page):
    window.resize(1280, 900)
    window.open(page.as_uri())
    return window


def search(window, words):
    window.run(
        "const i = document.getElementById('words'); i.value = arguments[0];"
        "i.dispatchEvent(new Event('input', {bubbles: true}))",
        words,
    )


def choose(window, name, value):
    window.run(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('input', {bubbles: true}))",
        name,
        value,
    )


@pytest.mark.slow
def test_the_page_opens_from_a_file_without_network_requests(fresh, page):
    assert fresh.run(f"return {SHOWN}") == 500
    assert fresh.run("return window.PWNED ?? null") is None
    assert fresh.run("return document.querySelectorAll('script, iframe, svg').length") == 1
    assert [url for url in fresh.requests() if not url.startswith("data:")] == []
    assert fresh.text("h1") == "All <b>things</b>" and fresh.run("return document.title") == "All <b>things</b>"
    assert fresh.run("return [...document.images].filter(i => i.complete && i.naturalWidth).length") > 5
    fresh.screenshot(Path(os.environ.get("SHOTS", page.parent)) / "gallery-wide.png")


@pytest.mark.slow
def test_search_and_filters_select_concepts(fresh):
    search(fresh, "THING-42")
    assert fresh.run(f"return {SHOWN}") == 11 and fresh.text("#count") == "11 of 500"  # 42 and 420 to 429
    search(fresh, "number 123")
    assert fresh.run(f"return {SHOWN}") == 1
    search(fresh, "")
    choose(fresh, "kind", "style")
    assert fresh.run(f"return {SHOWN}") == 167
    search(fresh, "owner3/")
    assert fresh.run(f"return {SHOWN}") == len([n for n in range(500) if n % 3 == 1 and n % 5 == 3])
    search(fresh, "no such thing")
    assert fresh.run("return document.getElementById('none').hidden") is False
    search(fresh, "")
    choose(fresh, "kind", "")
    choose(fresh, "base", "built-in")
    assert fresh.text("#count") == "500 concepts"
    began = fresh.run("return performance.now()")
    for letter in ("t", "th", "thi", ""):
        search(fresh, letter)
    assert fresh.run("return performance.now()") - began < 2000


@pytest.mark.slow
def test_the_copy_button_copies_the_token(fresh):
    fresh.client.post(f"{fresh.path}/permissions", json={"descriptor": {"name": "clipboard-write"}, "state": "granted"})
    fresh.run("window.copied = []; document.addEventListener('copy', e => copied.push(String(getSelection())))")
    fresh.run(
        "const real = navigator.clipboard; window.direct = [];"
        "if (real) real.writeText = text => { direct.push(text); return Promise.resolve() }"
    )
    fresh.click("article:nth-of-type(2) button")
    token = fresh.run("return document.querySelector('article:nth-of-type(2) button').dataset.token")
    assert fresh.wait("direct[0] || copied[0]") == token and token.startswith("<owner")
    assert fresh.text("#count") == f"Copied {token}"
    fresh.wait("document.getElementById('count').textContent === '500 concepts'", 5)


@pytest.mark.slow
def test_the_copy_button_works_without_the_clipboard_api(fresh):
    fresh.run(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined}); window.copied = [];"
        "document.addEventListener('copy', () => copied.push(document.activeElement.value))"
    )
    fresh.click("article:nth-of-type(3) button")
    assert fresh.wait("copied[0]") == fresh.run(
        "return document.querySelector('article:nth-of-type(3) button').dataset.token"
    )
    assert fresh.run("return document.querySelectorAll('textarea').length") == 0


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768, 1600])
def test_the_page_never_scrolls_horizontally(fresh, page, width):
    fresh.resize(width, 800)
    assert fresh.run("return document.documentElement.scrollWidth") <= width
    fresh.run("document.querySelectorAll('details').forEach((d, i) => { if (i < 12) d.open = true })")
    assert fresh.run("return document.documentElement.scrollWidth") <= width
    fresh.screenshot(Path(os.environ.get("SHOTS", page.parent)) / f"gallery-{width}.png")


@pytest.mark.slow
def test_the_page_follows_the_dark_and_light_color_scheme(fresh, page):
    colours = []
    for scheme in ("light", "dark"):
        fresh.call(
            "goog/cdp/execute",
            cmd="Emulation.setEmulatedMedia",
            params={"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        colours.append(
            fresh.run(
                "const h = document.querySelector('header');"
                "return [getComputedStyle(document.body).color, getComputedStyle(h).backgroundColor]"
            )
        )
        fresh.screenshot(Path(os.environ.get("SHOTS", page.parent)) / f"gallery-{scheme}.png")
    assert colours[0] == colours[1][::-1] or (colours[0] != colours[1] and colours[0][0] != colours[0][1])


@pytest.mark.slow
def test_the_content_security_policy_blocks_foreign_scripts_and_images(fresh):
    fresh.run("const s = document.createElement('script'); s.textContent = 'window.PWNED = 1'; document.body.append(s)")
    fresh.run(
        "const i = new Image(); window.loaded = ''; i.onload = () => loaded = 'yes'; i.onerror = () => loaded = 'no';"
        "i.src = 'http://127.0.0.1:9/x.png'"
    )
    assert fresh.wait("loaded") == "no" and fresh.run("return window.PWNED ?? null") is None
